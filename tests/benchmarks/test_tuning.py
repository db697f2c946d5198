"""What tuning found: the page says what the record says, and every row costs what it says."""

import json
import runpy
from pathlib import Path

import pytest

from foveate.contract.catalogue import from_dict
from foveate.contract.naming import parse

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "tuning"
DEPTH, VISION_TOKENS = 32, 576


@pytest.fixture(scope="module")
def table():
    return runpy.run_path(str(FOLDER / "table.py"))


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "search.json").read_text(encoding="utf-8"))


def test_the_record_has_four_methods_at_every_budget_and_is_of_the_shipped_weights(record):
    entering = {32: 55, 64: 110, 128: 220}
    cells = [(cell["budget"], cell["method"]) for cell in record["cells"]]
    assert cells == [
        (budget, method)
        for budget, left in entering.items()
        for method in ("v2drop", "visiondrop", "fastv", f"divprune:tokens={left}+v2drop")
    ]
    shipped = json.loads((ROOT / "training/results/shipped.json").read_text(encoding="utf-8"))
    assert record["about"]["weights"] == shipped["sha256"]


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


def test_the_scores_bring_more_than_the_tuned_schedule_alone(record):
    for cell in record["cells"]:
        assert cell["ahead"]["tuned of random at tuned"]["low"] > 0, (cell["method"], cell["budget"])
