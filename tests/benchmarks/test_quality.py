"""The committed quality figures: whole, of the shipped weights; README and model card show what they say."""

import hashlib
import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from statistics import median

import pytest
from benchmarks.quality import agree, run, table

import foveate as fv
from foveate import embedded
from foveate.contract.naming import kinds_of
from foveate.embedded.questions import TASKS
from foveate.methods.chains import PRESETS

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/quality/embedded.json").read_text())
COVERED = (*run.rows(), *table.CONTROLS)
"""Rows that the record must have."""
CELLS = {
    (cell["name"], round(576 * (cell["retention"] if cell["budget"] is None else cell["budget"]))): cell
    for cell in RECORD["cells"]
}


@pytest.mark.parametrize("script", ["benchmarks/quality/table.py", "training/card.py"])
def test_tables_are_what_the_figures_give(script):
    done = subprocess.run([sys.executable, ROOT / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_figures_are_of_the_shipped_weights():
    file = hashlib.sha256((embedded.path() / "model.safetensors").read_bytes()).digest()
    assert RECORD["model"]["weights"] == hashlib.sha256(file).hexdigest()
    assert not RECORD["commit"].endswith("+")


def test_every_method_of_the_record_stands_at_every_budget_or_names_its_floor():
    floors = {(cell["name"], round(576 * cell["budget"])) for cell in RECORD["infeasible"]}
    for budget in run.BUDGETS:
        for name in COVERED:
            if name.startswith("chain/"):  # at what it spends
                continue
            assert ((name, budget) in CELLS) != ((name, budget) in floors), (name, budget)
    for cell in RECORD["cells"]:
        if cell["name"] == "random":
            assert len(cell["draws"]) >= 3
        assert set(cell["tasks"]) == set(TASKS)


def test_every_method_that_works_on_pictures_is_asked():
    """DyCoke and EVS compare the frames of a film; FinalKV drops nothing by itself, and is in a chain."""
    asked = {kind.name for row in run.rows() if not row.startswith("chain/") for kind in kinds_of(row)}
    assert set(fv.methods()) - asked - set(table.CONTROLS) == {"dycoke", "evs", "finalkv"}
    chains = {preset.name for preset in PRESETS}
    assert (
        {row for row in run.rows() if row.startswith("chain/")} == chains <= {cell["name"] for cell in RECORD["cells"]}
    )


def test_there_are_enough_questions_for_four_points():
    assert RECORD["questions"] >= 500
    halves = [(cell["accuracy"]["high"] - cell["accuracy"]["low"]) / 2 for cell in RECORD["cells"]]
    assert median(halves) < 0.045


def test_the_record_has_three_seeds_and_their_counts():
    assert len(set(RECORD["seeds"])) == len(RECORD["by_seed"]["pictures"]) >= 3
    for task, count in RECORD["counts"].items():
        assert sum(RECORD["by_seed"]["counts"][task]) == count
        for figures in (RECORD["full"], *RECORD["cells"]):
            draws = len(figures.get("draws", ())) or 1
            share = sum(figures["right"][task]) / (count * draws)
            assert share == pytest.approx(figures["tasks"][task]["value"], abs=1e-3)


def test_dropping_has_a_price_here():
    """What the model must show to be of any use: tokens matter, and which tokens does too."""
    full = RECORD["full"]["tasks"]
    lost = [task for task in TASKS if full[task]["value"] - CELLS["random", 64]["tasks"][task]["value"] >= 0.15]
    assert len(lost) >= 4
    for budget in (192, 128, 64):
        ours, reversed_ = CELLS["v2drop", budget], CELLS["v2drop:reverse=true", budget]
        assert ours["against"]["random"]["low"] > 0
        assert reversed_["accuracy"]["high"] < ours["accuracy"]["low"]
        assert budget == 64 or reversed_["against"]["random"]["high"] < 0
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
    for cell in record["cells"]:
        for task, figure in cell["tasks"].items():
            figure["value"] = record["full"]["tasks"][task]["value"]
    (ours,) = (cell for cell in record["cells"] if cell["name"] == "v2drop" and round(576 * cell["budget"]) == 64)
    assert "| uniform |" not in table.table(record | {"seeds": [7]}, ["v2drop", "random"])
    assert "† Hides" not in table.table(record | {"seeds": [7]})
    ours["tasks"]["read text"]["value"] = 0.04
    full = record["full"]["tasks"]["read text"]["value"]
    text = table.table(record | {"seeds": [7]})
    assert f"(full model: read text {100 * full:.0f} %): v2drop at {ours['tokens']:.0f}: read text 4 %." in text
    assert text.count("†") == 3  # its cell, what the mark means, and which task


def test_a_fresh_record_agrees_or_the_exit_code_says_no(tmp_path, capsys):
    fresh = deepcopy(RECORD)
    fresh["seeds"] = [1000, 1001]
    path = tmp_path / "fresh.json"
    path.write_text(json.dumps(fresh))
    assert agree.main([str(path)]) == 0
    said = capsys.readouterr().out
    assert "The records agree." in said
    assert "v2drop at 22.2%, read text" in said
    shifted = fresh["cells"][0]["accuracy"]
    for end in shifted:
        shifted[end] -= 0.2
    path.write_text(json.dumps(fresh))
    assert agree.main([str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["agrees"], found["cells"][1]["agrees"]) == (False, "no")
    assert agree.main([str(tmp_path / "none.json")]) == 2
    assert "cannot be read" in capsys.readouterr().err
