"""The committed quality figures: whole, of the shipped weights; README and model card show what they say."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path
from statistics import median

import pytest
from benchmarks.quality import run, table

import foveate as fv
from foveate import embedded
from foveate.contract.naming import kinds_of
from foveate.embedded import TASKS
from foveate.methods.chains import PRESETS
from tests.forked import said_by

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/quality/embedded.json").read_text())
COVERED = (*run.rows(), *table.CONTROLS)
"""Rows that the record must have."""
QUALITY = table.quality_of(RECORD)
CELLS = {
    (row["name"], round(576 * (row["retention"] if row["budget"] is None else row["budget"]))): row
    for row in QUALITY.settings
}


@pytest.mark.parametrize("script", ["benchmarks/quality/table.py", "training/card.py"])
def test_tables_are_what_the_figures_give(script):
    said_by(f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')", "--check")


def test_the_figures_are_of_the_shipped_weights():
    file = hashlib.sha256((embedded.path() / "model.safetensors").read_bytes()).digest()
    assert RECORD["model"]["weights"] == hashlib.sha256(file).hexdigest()
    assert not RECORD["commit"].endswith("+")


def test_every_method_of_the_record_stands_at_every_budget_or_names_its_floor():
    floors = {(row["name"], round(576 * row["budget"])) for row in QUALITY.infeasible}
    for budget in run.BUDGETS:
        for name in COVERED:
            if name.startswith("chain/"):  # at what it spends
                continue
            assert ((name, budget) in CELLS) != ((name, budget) in floors), (name, budget)
    for row in QUALITY.settings:
        if row["name"] == "random":
            assert len(row["draws"]) >= 3
        assert set(QUALITY.tasks_of(row)) == set(TASKS)


def test_every_method_that_works_on_pictures_is_asked():
    """Others compare the frames of a film; FinalKV and Read drop nothing by themselves; PixelPrune needs a
    Qwen-VL or a GLM."""
    asked = {kind.name for row in run.rows() if not row.startswith("chain/") for kind in kinds_of(row)}
    film = {"dycoke", "evs", "dtd", "fastvid", "holitom", "flashvid"}
    assert film <= {row["name"] for row in json.loads((table.HERE / "films.json").read_text())["rows"]}
    assert set(fv.methods()) - asked - set(table.CONTROLS) - film == {"finalkv", "pixelprune", "read"}
    chains = {preset.name for preset in PRESETS}
    assert (
        {row for row in run.rows() if row.startswith("chain/")} == chains <= {row["name"] for row in QUALITY.settings}
    )


def test_there_are_enough_questions_for_two_points():
    assert QUALITY.full["questions"] >= 2000
    halves = [(row["accuracy_high"] - row["accuracy_low"]) / 2 for row in QUALITY.settings]
    assert median(halves) < 0.021


def test_the_record_has_three_seeds_and_their_counts():
    assert len(set(RECORD["seeds"])) >= 3
    for row in (QUALITY.full, *QUALITY.settings):
        for task in QUALITY.tasks_of(row).values():
            assert len(task["asked"]) == len(RECORD["seeds"])
            assert sum(task["asked"]) == task["questions"]
            share = sum(task["right"]) / (task["questions"] * (len(row.get("draws", ())) or 1))
            assert share == pytest.approx(task["accuracy"], abs=1e-3)


def test_dropping_has_a_price_here():
    """What the model must show to be of any use: tokens matter, and which tokens does too."""
    full, random = QUALITY.tasks_of(QUALITY.full), QUALITY.tasks_of(CELLS["random", 64])
    lost = [task for task in TASKS if full[task]["accuracy"] - random[task]["accuracy"] >= 0.15]
    assert len(lost) >= 4
    for budget in (192, 128, 64):
        ours, reversed_ = CELLS["v2drop", budget], CELLS["v2drop:reverse=true", budget]
        assert ours["minus_random_low"] > 0
        assert reversed_["accuracy_high"] < ours["accuracy_low"]
        assert budget == 64 or reversed_["minus_random_high"] < 0
        for other in ("metric=l1", "metric=cosine", "layers=3"):
            assert (f"v2drop:{other}", budget) in CELLS


def test_the_table_marks_floors_and_what_was_truly_spent():
    text = table.table(RECORD)
    assert "floor 55" in text
    assert "cannot show which method is best" in text
    for name in COVERED:
        assert f"| {name} |" in text


def test_the_table_says_which_seeds_and_what_an_accuracy_hides():
    record = deepcopy(RECORD)
    assert "(3 seeds: 0, 1, 2; intervals over pictures and seeds)" in table.table(record | {"seeds": [0, 1, 2]})
    assert "(one seed, 7; intervals over its pictures)" in table.table(record | {"seeds": [7]})
    quality = table.quality_of(record)
    full = quality.tasks_of(quality.full)
    for row in record["rows"]:
        if row["task"] is not None:
            row["accuracy"] = full[row["task"]]["accuracy"]
    (ours,) = (row for row in quality.settings if row["name"] == "v2drop" and round(576 * row["budget"]) == 64)
    assert "† Hides" not in table.table(record | {"seeds": [7]})
    quality.tasks_of(ours)["read text"]["accuracy"] = 0.04
    text = table.table(record | {"seeds": [7]})
    whole = 100 * full["read text"]["accuracy"]
    assert f"(full model: read text {whole:.0f} %): v2drop at {ours['tokens']:.0f}: read text 4 %." in text
    assert text.count("†") == 3  # its cell, what the mark means, and which task
