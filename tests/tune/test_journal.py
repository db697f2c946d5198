from pathlib import Path

import pytest

import foveate as fv
from foveate.tune.forcing import Outcome
from foveate.tune.race import Journal

FOUND = [Outcome(0.5, True)]


def test_what_was_tried_is_found_again(tmp_path):
    path = tmp_path / "state.jsonl"
    Journal(path, "a model").add("a method", "a picture", FOUND)
    again = Journal(path, "a model")
    assert (len(again), again["a method", "a picture"]) == (1, FOUND)
    assert ("a method", "another picture") not in again


def test_a_row_behind_a_line_that_was_cut_off_is_not_lost(tmp_path):
    path = tmp_path / "state.jsonl"
    Journal(path, "a model")
    with path.open("a") as file:
        file.write('{"method": "a me')
    Journal(path, "a model").add("a method", "a picture", FOUND)
    assert len(Journal(path, "a model")) == 1


@pytest.mark.parametrize("left", ["", '{"orig'])
def test_a_file_that_a_full_disk_left_without_a_line_is_begun_anew(tmp_path, left):
    path = tmp_path / "state.jsonl"
    path.write_text(left)
    Journal(path, "a model").add("a method", "a picture", FOUND)
    assert len(Journal(path, "a model")) == 1


@pytest.mark.parametrize(
    "text", ['{\n "chosen": "grid",\n "pictures": [\n  1\n ]\n}\n', "1\n", '{"origin": "another"}\n', "words"]
)
def test_another_file_is_refused_and_left_as_it_is(tmp_path, text):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(fv.InputError, match="no state of a search"):
        Journal(path, "a model")
    assert path.read_text() == text


def test_what_cannot_be_read_is_refused(tmp_path):
    for place in (tmp_path, "/dev/zero"):
        with pytest.raises(fv.InputError, match="folder or a device"):
            Journal(Path(place), "a model")
    (path := tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(fv.InputError, match="no state of a search"):
        Journal(path, "a model")
    with pytest.raises(fv.InputError, match="cannot be written"):
        Journal(tmp_path / "nowhere" / "state.jsonl", "a model")
