"""The committed record of memory and scoring time: the pages are made from it, and a cell is measured."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
run = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/memory/run.py")))
RECORD = json.loads(run.RECORD.read_text(encoding="utf-8"))


def test_the_pages_are_those_of_the_record():
    guide = run.GUIDE.read_text(encoding="utf-8")
    assert run.PAGE.read_text(encoding="utf-8") == run.page(RECORD)
    assert guide == run.filled(guide, RECORD)


def test_a_cell_is_measured_and_one_without_room_says_so(monkeypatch):
    found = run.cell("random", 576)
    assert found["peak"] > 0
    assert len(found["seconds"]) == len(found["random"])
