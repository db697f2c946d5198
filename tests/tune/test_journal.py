import pytest

import foveate as fv
from foveate.tune.forcing import Outcome
from foveate.tune.race import open_journal

FOUND = [Outcome(0.5, True)]


def test_what_was_tried_is_found_again(tmp_path):
    with open_journal(tmp_path / "state", "a model") as journal:
        journal.add("a method", "a picture", FOUND)
    with open_journal(tmp_path / "state", "a model") as again:
        assert (len(again), again["a method", "a picture"]) == (1, FOUND)


def test_another_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(fv.InputError, match="holds no run"), open_journal(tmp_path, "a model"):
        pass
    with pytest.raises(fv.InputError, match="cannot be used"), open_journal(tmp_path / "mine.json", "a model"):
        pass
    assert (tmp_path / "mine.json").read_text() == "{}"
