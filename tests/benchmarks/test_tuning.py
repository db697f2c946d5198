"""What tuning found: the page says what the record says, and every row costs what it says."""

import json
import runpy
from pathlib import Path

import pytest

from foveate.methods.catalogue import from_dict

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "tuning"
DEPTH, VISION_TOKENS = 32, 576


@pytest.fixture(scope="module")
def table():
    return runpy.run_path(str(FOLDER / "table.py"))


@pytest.fixture(scope="module")
def record():
    return json.loads((FOLDER / "embedded.json").read_text(encoding="utf-8"))


def rows_of(record):
    return [(cell, row) for cell in record["cells"] for row in cell["rows"]]


def test_the_page_says_what_the_committed_record_says(table, record):
    page = (ROOT / "docs" / "tuning-found.md").read_text(encoding="utf-8")
    assert f"{table['BEGIN']}\n{table['tables'](record)}\n{table['END']}" in page


def test_the_record_has_whole_cells_and_those_of_the_smallest_budgets(record):
    cells = {(cell["method"], cell["budget"]) for cell in record["cells"]}
    assert cells >= {("v2drop", 64), ("v2drop", 32), ("fastv", 64), ("fastv", 32)}
    assert all(cell["complete"] for cell in record["cells"])


def test_every_row_costs_what_it_says_and_none_more_than_the_budget(record):
    spent = {(cell["method"], cell["budget"], row["name"]): row["tokens"] for cell, row in rows_of(record)}
    for cell, row in rows_of(record):
        if "calibrated" in row:
            schedule = spent[cell["method"], cell["budget"], row["name"].removeprefix("adaptive, ")]
            assert row["calibrated"] == pytest.approx(schedule, rel=0.01), (cell["method"], row["name"])
            continue
        plan = from_dict(row["method"]).plan(DEPTH, (VISION_TOKENS,))
        assert sum(plan) / DEPTH == pytest.approx(row["tokens"], abs=1e-3)
        assert cell["budget"] - 1 < row["tokens"] <= cell["budget"] + 1e-6, (
            cell["method"],
            cell["budget"],
            row["name"],
        )


def test_seeds_to_search_calibrate_and_judge_with_are_apart(record):
    seeds = record["seeds"]
    used = [seeds["search"], seeds["calibration"], seeds["others"], *seeds["held-out"]]
    assert len(set(used)) == len(used)


def test_the_tuned_schedule_alone_does_not_make_the_gain(record):
    for cell in record["cells"]:
        by_name = {row["name"]: row["accuracy"]["value"] for row in cell["rows"]}
        assert by_name["tuned"] > by_name["random at tuned"], (cell["method"], cell["budget"])


def test_at_64_tokens_most_of_the_loss_is_recovered_within_ten_minutes_of_two_cores(record):
    (cell,) = (cell for cell in record["cells"] if (cell["method"], cell["budget"]) == ("v2drop", 64))
    by_name = {row["name"]: row["accuracy"]["value"] for row in cell["rows"]}
    full, published = cell["full"]["value"], by_name["published"]
    assert by_name["tuned"] >= published + 0.8 * (full - published)
    assert cell["cpu_minutes"] <= 20


def test_nothing_is_recovered_where_there_is_nothing_to_lose(table):
    assert table["recovered"](0.96, 0.95, 0.96) == "–"
    assert table["recovered"](0.9, 0.6, 0.87) == "90 %"
