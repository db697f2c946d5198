"""Rows for their places, and questions about places: the page has the record, and the control keeps first rows."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch

from foveate.contract import LayerView
from foveate.plain.table import between

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/coordinates"
RUN = SimpleNamespace(**runpy.run_path(str(FOLDER / "run.py")))
RECORD = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))


def test_the_page_has_the_records_table():
    page = (ROOT / "docs/methods/coordinates.md").read_text(encoding="utf-8")
    assert between(page, "places", f"{RUN.table(RECORD)}\n") == page
    assert page.count("| `first` |") == len(RUN.TOKENS)


def test_with_and_without_spend_the_same():
    spent = {(row["name"], row["budget"]): row["tokens"] for row in RECORD["rows"] if row["task"] is None}
    for name in RUN.NAMES:
        for budget in RUN.TOKENS:
            assert spent[name, budget] == spent[f"{name}+coordinates", budget]
    assert {row["task"] for row in RECORD["rows"]} == {None, *RUN.TASKS}


def test_the_control_keeps_the_pictures_first_rows():
    view = LayerView(torch.zeros(40, 1), tokens=torch.arange(5, 45))
    kept = RUN.First(layers=(3,), keep=(0.5,)).select(view, 10).tolist()
    assert len(kept) == 10
    assert kept[:4] == [0, 1, 2, 3]
