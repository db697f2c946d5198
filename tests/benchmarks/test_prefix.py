"""What looking once saves: the script runs, and its record says what it says."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "prefix.py"


@pytest.fixture(scope="module")
def record():
    return json.loads(SCRIPT.with_suffix(".json").read_text())


def test_the_record_has_a_control_and_both_questions_of_every_setting(record):
    ratios = record["times"]["ratios"]
    assert ratios[0]["run"] == "fresh, no dropping again"
    assert all(pair["low"] <= pair["median"] <= pair["high"] for pair in ratios)
    for number in (2, 100):
        assert sum(pair["base"].startswith(f"question {number},") for pair in ratios) >= 4


def test_dropping_makes_prefixes_smaller(record):
    sizes = {(row["method"], row["tokens"]): row["bytes"] for row in record["sizes"]}
    whole = sizes.pop(("none", None))
    for (method, tokens), held in sizes.items():
        assert held == pytest.approx(whole * (tokens + 2) / 578, rel=0.05), method


def test_the_script_runs(tmp_path, capsys):
    script = runpy.run_path(str(SCRIPT))
    out = tmp_path / "record.json"
    size = ["--layers", "8", "--width", "64", "--rounds", "2", "--many", "3"]
    script["main"]([*size, "--out", str(out)])
    assert json.loads(out.read_text())["times"]["rounds"] == 2
    assert "Memory of a prefix" in capsys.readouterr().out
