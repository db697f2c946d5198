"""The committed record of a million rows: the guide says what it says."""

import json
import runpy
from pathlib import Path

import pytest

from foveate.plain.table import between

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/batch.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def record():
    return json.loads(SCRIPT.with_suffix(".json").read_text(encoding="utf-8"))


def test_the_guide_says_what_the_record_says(script, record):
    guide = (ROOT / "docs/guides/batch.md").read_text(encoding="utf-8")
    assert between(guide, "batch", f"{script['page'](record)}\n") == guide


def test_the_script_runs(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(script["main"].__globals__, "MODEL_ROWS", 2)
    result = script["main"](["--rows", "3000", "--out", str(tmp_path / "batch.json")])
    assert json.loads((tmp_path / "batch.json").read_text()) == result == json.loads(capsys.readouterr().out)
    assert [(job["answered"], job["bad"]) for job in result["jobs"]] == [(2997, 3)] * 2
