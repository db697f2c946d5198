"""The harness of bad input: a case can be made again by its number, and what must fail fails."""

import mmap
import os
import signal
import time

import pytest

from foveate.errors import InputError
from tests.fuzz import judging
from tests.fuzz.__main__ import failures_of, main, tasks_of
from tests.fuzz.judging import Case, Outcome, Refused, Wrong, judge
from tests.fuzz.running import KINDS, Result, made


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_made_again_by_its_number(tmp_path, kind):
    seen = []
    for turn in ("first", "second", "another"):
        folder = tmp_path / turn / kind  # of one name, as a case may tell it
        folder.mkdir(parents=True)
        case = made(0, kind, 9 if turn == "another" else 8, folder)
        files = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        seen.append((case.told, files))
    assert seen[0] == seen[1] != seen[2]


def fails(error):
    """A case that raises this."""

    def call():
        raise error

    return Case("a case", call)


@pytest.mark.parametrize(
    ("case", "verdict", "words"),
    [
        (Case("fine", lambda: None), "taken", ""),
        (fails(InputError("a.png is damaged.")), "refused", "a.png is damaged."),
        (fails(Refused("exit code 2")), "refused", "exit code 2"),
        (fails(InputError("")), "failed", "an error without words"),
        (fails(InputError("a\nb\nc\nd\ne")), "failed", "an error of 5 lines and 9 letters"),
        (fails(InputError("x" * 2000)), "failed", "an error of 1 lines and 2000 letters"),
        (fails(TypeError("an oddity")), "failed", "TypeError: an oddity"),
        (fails(SystemExit(70)), "failed", "SystemExit: 70"),
        (fails(Wrong("exit code 70")), "failed", "exit code 70"),
        (Case("slow", lambda: time.sleep(9)), "failed", "TimeOut: more than 0.2 s"),
    ],
)
def test_an_end_that_is_not_allowed_is_a_failure(case, verdict, words):
    outcome = judge(case, 0.2)
    assert (outcome.verdict, outcome.words) == (verdict, words)
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is not told here")
def test_a_case_that_takes_much_memory_is_a_failure(monkeypatch):
    def large():
        with mmap.mmap(-1, 170 * 2**20) as room:  # pages that are new: malloc may have free ones of other tests
            room[:: mmap.PAGESIZE] = bytes(len(room) // mmap.PAGESIZE)

    monkeypatch.setattr(judging, "MOST_MEMORY", 150 * 2**20)
    outcome = judge(Case("large", large), 30.0)
    assert (outcome.verdict, outcome.words[:12]) == ("failed", "it took 170 ")


def test_failures_of_one_sort_are_one_line():
    results = [Result("films", index, "", Outcome("failed", f"byte 0x{index} (in a.py:read)")) for index in range(5)]
    assert failures_of(results) == ["5 × films: byte NxN (in a.py:read), such as films:0, films:1, films:2"]
    assert failures_of([Result("films", 0, "", Outcome("taken"))]) == []


def test_every_kind_has_a_case_at_any_scale():
    assert tasks_of(["films", "lines"], 1e-9) == [("films", 0), ("lines", 0)]
    assert sum(kind.count for kind in KINDS.values()) == 34_500


def test_a_case_can_be_run_again_alone(capsys):
    assert main(["--case", "settings:3"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith(("refused: ", "taken: "))
