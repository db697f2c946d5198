"""A bad row is an input again, from any folder, and its reason stays short."""

import json

from foveate.batch.rows import LONGEST, bad_row
from foveate.runs.samples import Bad, samples_in


def test_a_row_without_a_question_has_absolute_paths(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"image": "a.png"}) + "\n" + json.dumps({"image": ["a.png"], "id": []}) + "\n")
    rows = [bad_row(bad, bad.reason) for bad in samples_in(path).read()]
    assert [row["image"] for row in rows] == [[str(tmp_path / "a.png")]] * 2


def test_what_can_be_a_path_is_absolute_beside_what_cannot(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"image": ["a.png", "https://a.b/c.png", 5], "question": "What?"}) + "\n")
    (bad,) = samples_in(path).read()
    assert bad_row(bad, bad.reason)["image"] == [str(tmp_path / "a.png"), "https://a.b/c.png", 5]


def test_a_long_reason_is_shortened():
    row = bad_row(Bad(0, {}, ""), "x" * 18_000)
    assert len(row["reason"]) == LONGEST + 1
    assert row["reason"].endswith("…")
