"""The committed record of memory and scoring time: it has every method, and the pages made from it."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
run = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/memory/run.py")))
RECORD = json.loads(run.RECORD.read_text(encoding="utf-8"))
ALL_PAIRS = {"mmtok", "scope", "vispruner"}
"""Methods that hold a matrix of all pairs; their pages say so."""


def test_memory_of_every_method_is_linear_or_its_page_says_the_limit():
    assert set(RECORD["rows"]) == set(run.names())
    for name, row in RECORD["rows"].items():
        assert set(row) == set(map(str, run.TOKENS)), name
        assert (float(run.growth(RECORD, name)) > 1.5) == (name in ALL_PAIRS), name
    for name in ALL_PAIRS:
        assert "matrix of all pairs" in (ROOT / f"docs/methods/{name}.md").read_text(encoding="utf-8")


def test_the_pages_are_those_of_the_record():
    guide = run.GUIDE.read_text(encoding="utf-8")
    assert run.PAGE.read_text(encoding="utf-8") == run.page(RECORD)
    assert guide == run.filled(guide, RECORD)


def test_a_cell_is_measured_and_one_without_room_says_so(monkeypatch):
    found = run.cell("random", 576)
    assert found["peak"] > 0
    assert len(found["seconds"]) == len(found["random"])
