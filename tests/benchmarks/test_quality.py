"""The committed quality figures: of the shipped weights; README and model card show what they say."""

import hashlib
import json
from copy import deepcopy
from pathlib import Path

import pytest
from benchmarks.quality import table

from foveate import embedded
from tests.forked import said_by

ROOT = Path(__file__).parents[2]
RECORD = json.loads((ROOT / "benchmarks/quality/embedded.json").read_text())
QUALITY = table.quality_of(RECORD)


@pytest.mark.parametrize("script", ["benchmarks/quality/table.py", "training/card.py"])
def test_tables_are_what_the_figures_give(script):
    said_by(f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')", "--check")


def test_the_figures_are_of_the_shipped_weights():
    file = hashlib.sha256((embedded.path() / "model.safetensors").read_bytes()).digest()
    assert RECORD["model"]["weights"] == hashlib.sha256(file).hexdigest()
    assert not RECORD["commit"].endswith("+")


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
