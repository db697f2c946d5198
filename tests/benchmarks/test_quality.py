"""The committed quality figures: whole, of the shipped weights; README and model card show what they say."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.quality import table

from foveate import embedded
from foveate.embedded.questions import TASKS

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/quality/embedded.json").read_text())
COVERED = ("v2drop", "visiondrop", "mustdrop", "random", "uniform", "averagepool", "resize")
"""Methods that the record was made with."""
CELLS = {(cell["name"], round(576 * cell["budget"])): cell for cell in RECORD["cells"]}


@pytest.mark.parametrize("script", ["benchmarks/quality/table.py", "training/card.py"])
def test_tables_are_what_the_figures_give(script):
    done = subprocess.run([sys.executable, ROOT / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_figures_are_of_the_shipped_weights():
    file = hashlib.sha256((embedded.path() / "model.safetensors").read_bytes()).digest()
    assert RECORD["model"]["weights"] == hashlib.sha256(file).hexdigest()
    assert not RECORD["commit"].endswith("+")


def test_every_method_of_the_record_stands_at_every_budget_or_names_its_floor():
    """A method that came after the record is not in it."""
    floors = {(cell["name"], round(576 * cell["budget"])) for cell in RECORD["infeasible"]}
    for budget in (192, 128, 64, 32):
        for name in COVERED:
            assert ((name, budget) in CELLS) != ((name, budget) in floors), (name, budget)
    for cell in RECORD["cells"]:
        if cell["name"] == "random":
            assert len(cell["draws"]) >= 3
        assert set(cell["tasks"]) == set(TASKS)


def test_there_are_enough_questions_for_two_points():
    assert RECORD["questions"] >= 2000
    halves = [(cell["accuracy"]["high"] - cell["accuracy"]["low"]) / 2 for cell in RECORD["cells"]]
    assert max(halves) < 0.03


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
