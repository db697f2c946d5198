"""The harness of bad input: what must fail fails, is shrunk, and can be made again."""

import json
import mmap
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import strategies as st

from foveate.errors import InputError
from tests.fuzz import judging
from tests.fuzz.__main__ import main
from tests.fuzz.judging import Case, Refused, Wrong
from tests.fuzz.running import hunt, tried


def fails(error):
    """A case that raises this."""

    def call(folder):
        raise error

    return Case("a case", call)


@pytest.mark.parametrize(
    ("case", "verdict", "words"),
    [
        (Case("fine", lambda folder: None), "taken", ""),
        (fails(InputError("a.png is damaged.")), "refused", "a.png is damaged."),
        (fails(Refused("exit code 2")), "refused", "exit code 2"),
        (fails(InputError("")), "failed", "an error without words"),
        (fails(InputError("a\nb\nc\nd\ne")), "failed", "a long error: 5 lines and 9 letters"),
        (fails(InputError("x" * 2000)), "failed", "a long error: 1 lines and 2000 letters"),
        (fails(TypeError("an oddity")), "failed", "TypeError: an oddity (in test_fuzz.py:call)"),
        (fails(SystemExit(70)), "failed", "SystemExit: 70 (in test_fuzz.py:call)"),
        (fails(Wrong("exit code 70")), "failed", "exit code 70"),
        (Case("slow", lambda folder: time.sleep(9)), "failed", "TimeOut: more than 0.2 s (in judging.py:ring)"),
        (Case("a crash", lambda folder: os.kill(os.getpid(), signal.SIGSEGV)), "failed", "the process ended with -11"),
    ],
)
def test_an_end_that_is_not_allowed_is_a_failure(case, verdict, words):
    outcome = tried(case, 0.2)
    assert (outcome.verdict, outcome.words) == (verdict, words)


def test_a_process_that_hears_no_alarm_is_ended(monkeypatch):
    monkeypatch.setattr("tests.fuzz.running.GRACE", 0.3)

    def hang(folder):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(9)

    assert tried(Case("a hang", hang), 0.2).words == "the process hangs"


def test_a_case_that_takes_much_memory_is_a_failure(monkeypatch):
    def large(folder):
        with mmap.mmap(-1, 170 * 2**20) as room:  # pages that are new: malloc may have free ones of other tests
            room[:: mmap.PAGESIZE] = bytes(len(room) // mmap.PAGESIZE)

    monkeypatch.setattr(judging, "MOST_MEMORY", 150 * 2**20)
    outcome = tried(Case("large", large), 30.0)
    assert (outcome.verdict, outcome.words[:12]) == ("failed", "it took 170 ")


def wide(number):
    """Wrong from 100 on, and a crash from 1000 on."""

    def call(folder):
        if number >= 1000:
            os.abort()
        if number >= 100:
            raise Wrong("too wide", number)
        assert (folder / "number").read_text() == str(number)

    return Case(f"number {number}", call, lambda folder: (folder / "number").write_text(str(number)))


def test_each_way_to_fail_is_shrunk_kept_and_made_again(tmp_path):
    cases = st.integers(0, 5000).map(wide)
    tally = hunt(cases, count=60, limit=9.0, kept=tmp_path / "wide")
    assert {one.told: one.outcome.words for one in tally.found} == {
        "number 100": "too wide: 100",
        "number 1000": "the process ended with -6",
    }
    assert {path.read_text() for path in tmp_path.glob("wide-*/case/number")} == {"100", "1000"}
    for one in tally.found:
        (again,) = hunt(cases, count=1, limit=9.0, blob=one.blob, kept=tmp_path / "again").found
        assert (again.told, again.blob) == (one.told, one.blob)


EVERY_KIND = """
import json, sys
from tests.fuzz.__main__ import main
from tests.fuzz.running import KINDS, strategies_of
code = main(sys.argv[1:])
print(json.dumps({kind: len(strategies_of(kind)) for kind in KINDS}))
sys.exit(code)
"""


def test_every_kind_has_cases_that_end_well_at_any_scale(tmp_path):
    """In a process that has imported nothing else: decord's libvpx takes the place of PyAV's."""
    program = [sys.executable, "-c", EVERY_KIND, "--scale", "1e-9", "--jobs", "1", "--out", str(tmp_path / "out")]
    run = subprocess.run(program, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    *lines, parts = run.stdout.splitlines()
    assert {line.partition(" tried, ")[0] for line in lines} >= {
        f"{kind}: {n}" for kind, n in json.loads(parts).items()
    }


def test_what_fails_is_told_in_the_exit_code_with_how_to_make_it_again(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr("tests.fuzz.settings._used", lambda *_: 1 / 0)
    assert main(["--kinds", "settings", "--scale", "0.001", "--jobs", "1", "--out", str(tmp_path / "out")]) == 1
    said = capfd.readouterr().out
    assert "1 sorts of failure" in said
    again = said.partition('again: make fuzz FUZZ="')[2].partition('"')[0]
    assert main([*again.split(), "--out", str(tmp_path / "out")]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().out
