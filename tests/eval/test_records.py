"""Answers that are kept: they come back as they were, whatever happens to their file, or are asked again."""

import json
import math
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.eval.records import divergence, fingerprint, open_answers
from tests.forked import forked


def record(method, question, answer="red", **more):
    """A row as an embedded question's answer leaves it."""
    row = {"method": method, "question": question, "answer": answer, "spent": 64.0, "vision_tokens": 576, "flops": 1e9}
    if method == "full":
        return row | {"first": {"ids": [5, 2], "logs": [-0.25, -1.5]}} | more
    return row | {"kl": 0.125} | more


def test_what_was_added_is_there_again(tmp_path):
    rows = [record("full", "1/colour", answer="rot, grün"), record("v2drop", "pope/1", tokens=[5, 2], setting=None)]
    with open_answers({"weights": "a"}, tmp_path / "new" / "folder") as answers:
        answers.add(rows)
        assert answers.get("v2drop", "pope/1") == rows[1]
    with open_answers({"weights": "a"}, tmp_path / "new" / "folder") as again:
        assert again.get("full", "1/colour") == rows[0]
        assert again.get("v2drop", "pope/1") == rows[1]
        assert again.get("full", "2/colour") is None
        assert len(again) == 2


def test_other_conditions_have_their_own_folder(tmp_path):
    with open_answers({"weights": "a"}, tmp_path) as answers:
        answers.add([record("full", "1/colour")])
    for conditions, known in (({"weights": "b"}, 0), ({"weights": "a"}, 1)):
        with open_answers(conditions, tmp_path) as answers:
            assert len(answers) == known
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 1, "b": 3})


def test_a_process_beside_the_first_reads_and_adds(tmp_path):
    with open_answers({}, tmp_path) as first:
        first.add(ROWS[:2])
        with open_answers({}, tmp_path, alone=False) as second:
            assert len(second) == 2
            second.add(ROWS[2:])
        first.add([record("full", "9/colour")])
    with open_answers({}, tmp_path) as again:
        assert len(again) == len(ROWS) + 1


# Damage

ROWS = [
    record("full", "1/colour"),
    record("v2drop abc", "1/colour", answer="grün, \n \u2028 \x00"),
    record("full", "2/count", answer="12"),
    record("v2drop abc", "pope/1/2", flops=None),
    record("full", "pope/1/2", media=None, setting={"method": "v2drop", "layers": [3]}),
]


def after(change):
    """What is known of the rows when their file's bytes are changed so, and what was noted."""
    heard = []
    with tempfile.TemporaryDirectory() as folder:
        with open_answers({}, Path(folder)) as answers:
            answers.add(ROWS)
            path = answers.path / "part-00000.jsonl"
        path.write_bytes(change(path.read_bytes()))
        with open_answers({}, Path(folder), note=heard.append) as answers:
            answered = [(row, answers.get(row["method"], row["question"])) for row in ROWS]
            assert len(answers) == sum(other is not None for _, other in answered)
    assert all(other is None or json.dumps(other) == json.dumps(row) for row, other in answered)
    return sum(other is not None for _, other in answered), heard


PLACE = st.integers(0, 1500)
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
    def change(text):
        for damage in damages:
            text = damaged(text, damage)
        return text

    after(change)


def test_a_line_that_was_never_finished_costs_that_line_alone():
    known, heard = after(lambda text: text[:-30])
    assert (known, len(heard)) == (len(ROWS) - 1, 1)
    assert heard[0].startswith("1 line is damaged")
    assert after(lambda text: text) == (len(ROWS), [])


def test_another_answer_in_a_line_is_not_believed():
    assert after(lambda text: text.replace(b'"12"', b'"13"'))[0] == len(ROWS) - 1
    assert after(lambda text: text.replace(b', "sha256": "', b', "sha255": "', 1))[0] == len(ROWS) - 1


# Two runs at once

HOLD = """
import sys
from foveate.eval.records import open_answers
with open_answers({}, sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_run_waits_then_refuses_and_goes_on_when_the_first_has_ended(tmp_path, monkeypatch):
    with forked(HOLD, tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == "held\n"
        with open_answers({"weights": "others"}, tmp_path):
            pass
        with monkeypatch.context() as patch:
            patch.setattr("foveate.runs.store.PATIENCE", 0.3)
            refusal = pytest.raises(fv.InputError, match=rf"is in use by another run, process {other.pid}\. Wait until")
            with refusal, open_answers({}, tmp_path):
                pass
        threading.Timer(0.3, print, kwargs={"file": other.stdin, "flush": True}).start()
        with open_answers({}, tmp_path) as store:
            store.add(ROWS)


@pytest.mark.parametrize("size", [40, 3000])
def test_divergence_is_the_exact_one_on_a_small_vocabulary_and_a_lower_bound_on_a_large_one(size):
    full, other = torch.randn(2, size, generator=torch.Generator().manual_seed(size)).mul(2).log_softmax(-1)
    exact = float((full.exp() * (full - other)).sum())
    ids = full.topk(min(size, 256)).indices.tolist()
    first = {"ids": ids, "logs": full[ids].tolist()}
    assert divergence(first, full) == pytest.approx(0, abs=1e-4)
    if size == 40:
        assert divergence(first, other) == pytest.approx(exact, rel=1e-3)
    else:
        assert 0.5 * exact < divergence(first, other) < exact


def test_divergence_counts_all_that_is_not_listed_as_one_token():
    first = {"ids": [2], "logs": [math.log(0.5)]}
    other = torch.tensor([0.25, 0.5, 0.25]).log()
    assert divergence(first, other) == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), abs=1e-5)
