"""What PixelPrune drops of the drawn pictures is in the record, and the record is on the page."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

import foveate as fv

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/pixels"
RECORD = json.loads((FOLDER / "record.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run():
    """The script, without running it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**runpy.run_path(str(FOLDER / "run.py")))


def test_the_page_has_the_records_tables(run):
    page = (ROOT / "docs/methods/pixelprune.md").read_text(encoding="utf-8")
    assert run.filled(page, RECORD) == page
    assert page.count("| photograph |") == 1


@pytest.mark.parametrize("name", ["screenshot", "page of text", "page, grey scan", "photograph"])
def test_what_leaves_of_a_picture(run, name):
    """To a point, as other versions of Pillow may draw letters a little differently."""
    model = run.model_of("qwen2_5_vl", blocks=1, layers=1)
    inputs = run.processed(run.PICTURES[name](run.SIZE), "qwen2_5_vl")
    (row,) = (row for row in RECORD["shares"] if (row["picture"], row["family"]) == (name, "qwen2_5_vl"))
    found = {}
    for tau in (0.0, 0.1):
        stays = run.decided(model, inputs, fv.PixelPrune(tau=tau))
        found[f"{tau:.4f}"] = 100 * (1 - stays.float().mean().item())
    assert found == pytest.approx({tau: row["leave %"][tau] for tau in found}, abs=1)
    assert (found["0.0000"] > 40) == (name in ("screenshot", "page of text"))
