import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.eval.rows import line_of
from foveate.eval.store import Store, fingerprint, open_store


def record(method, question, answer="red", **more):
    """A row as an embedded question's answer leaves it."""
    row = {"method": method, "question": question, "answer": answer, "spent": 64.0, "vision_tokens": 576, "flops": 1e9}
    if method == "full":
        return row | {"first": {"ids": [5, 2], "logs": [-0.25, -1.5]}} | more
    return row | {"kl": 0.125} | more


def benchmark_record(method, question, **more):
    """A row as a benchmark's answer leaves it."""
    own = {"tokens": [5, 2], "retention": 0.1, "media": "a picture", "setting": {"method": "v2drop", "layers": [3]}}
    return record(method, question, **(own | more))


def test_what_was_added_is_there_again(tmp_path):
    store = Store(tmp_path / "new" / "folder", {"weights": "a"})
    rows = [record("full", "1/colour", answer="rot, grün"), benchmark_record("v2drop", "pope/1")]
    store.add(rows)
    again = Store(tmp_path / "new" / "folder", {"weights": "a"})
    assert again.get("full", "1/colour") == rows[0]
    assert again.get("v2drop", "pope/1") == rows[1]
    assert again.get("full", "2/colour") is None
    assert (len(again), again.damaged) == (2, 0)


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
    with pytest.raises(fv.InputError, match="Name another folder"), open_store({}, tmp_path / "file"):
        pass
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


# Damage

ROWS = [
    record("full", "1/colour"),
    record("v2drop abc", "1/colour", answer="grün, \n \u2028 \x00"),
    record("full", "2/count", answer="12"),
    benchmark_record("v2drop abc", "pope/1/2", flops=None),
    benchmark_record("full", "pope/1/2", media=None, setting=None),
]
CLEAN = "".join(map(line_of, ROWS)).encode()


def stored(text):
    """A store whose rows are these bytes."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), {})
        store.path.write_bytes(text)
        return Store(Path(folder), {})


def unchanged(store):
    """How many rows it has; each is as it was written."""
    found = [(row, store.get(row["method"], row["question"])) for row in ROWS]
    known = [row for row, other in found if other is not None]
    assert all(other == row and json.dumps(other) == json.dumps(row) for row, other in found if other is not None)
    assert len(known) == len(store)
    return len(known)


PLACE = st.integers(0, len(CLEAN) - 1)
DAMAGE = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
    st.tuples(st.just("cut"), PLACE, st.integers(1, 400)),
    st.tuples(st.just("put"), PLACE, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just("put"), PLACE, st.sampled_from([b"\0" * 16, b"\xff\xfe", b"\n", b"\r\n", b"1", b"[" * 5000])),
    st.tuples(st.just("swap"), PLACE, PLACE),
)


def damaged(text, damage):
    """These bytes, damaged."""
    kind, place, how = damage
    if kind == "flip" and place < len(text):
        return text[:place] + bytes([text[place] ^ how]) + text[place + 1 :]
    if kind == "cut":
        return text[:place] + text[place + how :]
    if kind == "put":
        return text[:place] + how + text[place:]
    if kind == "swap":  # eight bytes of one place with those of another
        low, high = sorted((place, how))
        if low + 8 <= high:
            return text[:low] + text[high : high + 8] + text[low + 8 : high] + text[low : low + 8] + text[high + 8 :]
    return text


@given(st.lists(DAMAGE, min_size=1, max_size=4))
def test_damage_never_changes_a_value(damages):
    text = CLEAN
    for damage in damages:
        text = damaged(text, damage)
    store = stored(text)
    unchanged(store)
    assert store.damaged <= text.count(b"\n") + 1


@given(st.sampled_from(range(5)), st.sampled_from(range(5)), st.sampled_from(sorted(ROWS[3])))
def test_values_swapped_between_rows_are_found(one, other, name):
    rows = [json.loads(line) for line in CLEAN.splitlines()]
    if name in rows[one] and name in rows[other]:
        rows[one][name], rows[other][name] = rows[other][name], rows[one][name]
    unchanged(stored("".join(json.dumps(row) + "\n" for row in rows).encode()))


@given(PLACE, st.binary(max_size=40))
def test_damage_to_rows_without_a_checksum_is_no_traceback(place, put):
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    store = stored(text[:place] + put + text[place + len(put) :])
    assert len(ROWS) - 2 - put.count(b"\n") <= len(store)
    for row in ROWS:
        found = store.get(row["method"], row["question"])
        assert found is None or isinstance(found["answer"], str)


def test_a_row_that_has_lost_its_checksum_is_asked_again():
    """A cut may end before one, and leave a row that looks like those of before."""
    harmed = CLEAN.replace(b'"kl":0.125,"sha256":"', b'"kl":0.1}\n"', 1)
    assert harmed != CLEAN
    assert unchanged(stored(harmed)) == len(ROWS) - 1
    heading = b'{"format": "foveate eval 2", "conditions": {}}\n'
    first = CLEAN.splitlines()[0].partition(b',"sha256"')[0] + b"}\n"
    assert len(stored(heading + first)) == 0
    assert len(stored(heading.replace(b"2", b"1") + first)) == 1


def test_rows_of_before_are_known():
    text = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    assert unchanged(stored(text)) == len(ROWS)
    assert unchanged(stored(CLEAN)) == len(ROWS)


@pytest.mark.parametrize(
    "change",
    [
        {"spent": "64"},
        {"spent": None},
        {"spent": float("nan")},
        {"spent": -1},
        {"vision_tokens": 10**400},
        {"vision_tokens": True},
        {"answer": 7},
        {"answer": None},
        {"question": ["1"]},
        {"first": None},
        {"first": {"ids": [1], "logs": [0.0, 1.0]}},
        {"first": {"ids": [], "logs": []}},
        {"first": {"ids": [2**40], "logs": [0.0]}},
        {"first": [1]},
        {"more": 1},
        {"sha256": "0123456789abcdef"},
        {"sha256": 7},
    ],
)
def test_a_row_of_other_fields_or_types_is_not_known(change):
    store = stored((json.dumps(ROWS[0] | change) + "\n").encode())
    assert (len(store), store.damaged) == (0, 1)


@pytest.mark.parametrize("name", sorted(set(ROWS[3]) - {"kl"}))
def test_a_row_without_a_field_is_not_known(name):
    row = {key: value for key, value in ROWS[3].items() if key != name}
    assert len(stored(line_of(row).encode())) == 0
    assert len(stored((json.dumps(row) + "\n").encode())) == 0


def test_what_is_damaged_is_said_once_and_asked_again(tmp_path):
    heard = []
    with open_store({}, tmp_path) as store:
        store.add(ROWS)
    store.path.write_bytes(store.path.read_bytes().replace(b'"12"', b'"13"'))
    with open_store({}, tmp_path, note=heard.append) as store:
        assert store.get("full", "2/count") is None
        store.add([ROWS[2]])
    assert len(heard) == 1
    assert "1 line is damaged" in heard[0]
    assert unchanged(Store(tmp_path, {})) == len(ROWS)


# Two runs at once

HOLD = """
import sys, time
from foveate.eval.store import open_store
with open_store({}, sys.argv[1]) as store:
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other_run(tmp_path):
    """Another process that uses the store until it reads a line."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_a_second_run_waits_and_then_refuses(tmp_path, other_run, monkeypatch):
    monkeypatch.setattr("foveate.eval.lock.PATIENCE", 0.3)
    heard = []
    with (
        pytest.raises(fv.InputError, match=rf"\.jsonl is in use by another run, process {other_run.pid}\. Wait until"),
        open_store({}, tmp_path, note=heard.append),
    ):
        pass
    assert len(heard) == 1
    assert f"in use by another run, process {other_run.pid}; waiting up to 0.3 s" in heard[0]
    with open_store({"weights": "others"}, tmp_path):
        pass


def test_a_second_run_goes_on_when_the_first_has_ended(tmp_path, other_run):
    def end(_):
        other_run.stdin.write("\n")
        other_run.stdin.flush()

    with open_store({}, tmp_path, note=end) as store:
        store.add(ROWS)
    assert other_run.wait() == 0


@pytest.mark.skipif(os.name != "posix", reason="no kill -9 here")
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, other_run):
    other_run.send_signal(signal.SIGKILL)
    other_run.wait()
    heard = []
    with open_store({}, tmp_path, note=heard.append):
        pass
    assert heard == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_answers_in_a_folder_without_rights_can_be_read(tmp_path):
    folder = tmp_path / "shared"
    with open_store({}, folder) as store:
        store.add(ROWS)
    for path in (*folder.iterdir(), folder):
        path.chmod(0o555)
    try:
        with open_store({}, folder) as store:
            assert unchanged(store) == len(ROWS)
    finally:
        folder.chmod(0o755)
