"""What looking once saves: the script runs, and the guide says what its record says."""

import json
import runpy
from pathlib import Path

import pytest

from foveate.plain.table import between

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "prefix.py"


def test_the_guide_says_what_the_committed_record_says():
    record = json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))
    guide = (ROOT / "docs/guides/look-once.md").read_text(encoding="utf-8")
    page = runpy.run_path(str(SCRIPT))["page"](record)
    assert between(guide, "prefix", f"{page}\n") == guide


@pytest.mark.filterwarnings("ignore:v2drop is not the best choice")
def test_the_script_writes_ratios_with_a_control_and_the_bytes_of_prefixes(tmp_path, capsys):
    script = runpy.run_path(str(SCRIPT))
    out = tmp_path / "record.json"
    size = ["--layers", "8", "--width", "64", "--rounds", "2", "--many", "3"]
    script["main"]([*size, "--out", str(out)])
    record = json.loads(out.read_text())
    ratios = record["times"]["ratios"]
    assert ratios[0]["run"] == "fresh, no dropping again"
    assert all(pair["low"] <= pair["median"] <= pair["high"] for pair in ratios)
    for number in (2, 3):
        assert sum(pair["base"].startswith(f"question {number},") for pair in ratios) >= 4
    sizes = {(row["method"], row["tokens"]): row["bytes"] for row in record["sizes"]}
    whole = sizes.pop(("none", None))
    for (method, tokens), held in sizes.items():
        assert held == pytest.approx(whole * (tokens + 2) / 578, rel=0.05), method
    assert "Memory of a prefix" in capsys.readouterr().out
