"""What tuning found: the page says what the record says, and every row costs what it says."""

import json
import runpy
from pathlib import Path

import pytest

from foveate.naming import parse
from foveate.registry import from_dict

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "tuning"
DEPTH, VISION_TOKENS = 32, 576


@pytest.fixture(scope="module")
def table():
    return runpy.run_path(str(FOLDER / "table.py"))


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "search.json").read_text(encoding="utf-8"))


def test_the_page_says_what_the_committed_records_say(table):
    page = (ROOT / "docs" / "tuning-found.md").read_text(encoding="utf-8")
    assert table["filled"](page) == page


def test_every_row_costs_what_it_says_and_can_be_typed(record):
    for cell in record["cells"]:
        for row, setting in cell["settings"].items():
            method = from_dict(setting)
            plan = method.plan(DEPTH, (VISION_TOKENS,))
            assert cell["budget"] - 1 < sum(plan) / DEPTH <= cell["budget"] + 1e-6, (cell["method"], row)
            assert parse(str(method)).plan(DEPTH, (VISION_TOKENS,)) == plan
