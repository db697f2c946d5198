import pytest

import foveate as fv
from foveate.eval.store import Store, fingerprint


def record(method, question, **more):
    return {"method": method, "question": question, **more}


def test_what_was_added_is_there_again(tmp_path):
    store = Store(tmp_path / "new" / "folder", {"weights": "a"})
    store.add([record("full", "1/colour", answer="rot, grün")])
    again = Store(tmp_path / "new" / "folder", {"weights": "a"})
    assert again.get("full", "1/colour")["answer"] == "rot, grün"
    assert again.get("full", "2/colour") is None
    assert len(again) == 1


def test_other_conditions_have_their_own_file(tmp_path):
    Store(tmp_path, {"weights": "a"}).add([record("full", "1/colour")])
    assert len(Store(tmp_path, {"weights": "b"})) == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_line_that_was_never_finished_costs_that_line_alone(tmp_path, cut):
    store = Store(tmp_path, {})
    store.add([record("full", "1/colour", answer="red"), record("full", "2/colour", answer="blue")])
    store.path.write_bytes(store.path.read_bytes()[:-cut])  # killed in the middle of writing
    again = Store(tmp_path, {})
    assert again.get("full", "1/colour")["answer"] == "red"
    again.add([record("full", "3/colour", answer="green")])
    third = Store(tmp_path, {})
    assert third.get("full", "3/colour")["answer"] == "green"
    assert third.get("full", "1/colour")["answer"] == "red"


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(fv.InputError, match="Name another folder"):
        Store(tmp_path / "file", {})
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_said_and_costs_nothing_that_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path, {})
    store.add([record("full", "1/colour")])

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(fv.InputError, match=r"No space left.*nothing is lost"):
        store.add([record("full", "2/colour")])
    assert Store(tmp_path, {}).get("full", "1/colour") is not None
