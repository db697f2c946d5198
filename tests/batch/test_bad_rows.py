"""A bad row is an input again, from any folder, and its reason stays short."""

import json

import pytest

from foveate.batch.rows import LONGEST, bad_row
from foveate.runs.samples import Bad, samples_in

DATA = "data:image/png;base64,iVBORw0KGgo="


@pytest.mark.parametrize("question", ["What?", None], ids=["of a sample", "of no sample"])
@pytest.mark.parametrize(
    "image", ["b/a.png", ["b/a.png"], ["b/a.png", DATA], ["b/a.png", "/c.png"], ["b/a.png", "https://a.b/c.png", 5]]
)
def test_a_row_has_the_paths_of_the_input_and_is_an_input_again_from_any_folder(tmp_path, image, question):
    (tmp_path / "first").mkdir()
    path = tmp_path / "first/in.jsonl"
    path.write_text(json.dumps({"image": image, "question": question, "root": "mine"}) + "\n")
    (sample,) = samples_in(path).read()
    row = bad_row(sample, "It is bad.")
    assert (row["image"], row["input_root"]) == (image, "mine")
    again = tmp_path / "bad.jsonl"
    again.write_text(json.dumps({**row, "image": "b/a.png", "question": "What?"}) + "\n")
    for root in (None, tmp_path):
        (sample,) = samples_in(again, root=root).read()
        assert sample.media == (str((root or tmp_path / "first") / "b/a.png"),)
    assert bad_row(sample, "It is worse.")["reason"] == "It is worse."
    assert bad_row(sample, "It is worse.")["input_root"] == "mine"


def test_a_long_reason_is_shortened():
    row = bad_row(Bad(0, {}, ""), "x" * 18_000)
    assert len(row["reason"]) == LONGEST + 1
    assert row["reason"].endswith("…")
