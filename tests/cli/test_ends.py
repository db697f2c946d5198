"""A command that is ended from outside, by a signal or a full disk, leaves nothing half done."""

import json
import os
import signal
import subprocess
import time

import pytest

from foveate.cli import main
from foveate.cli.lists import Methods
from tests.forked import alive, forked

PROGRAM = "import sys; from foveate.cli import main; sys.exit(main(sys.argv[1:]))"
KILLED = 143


def test_kill_ends_with_143_and_one_line(run, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Methods, "run", lambda self: signal.raise_signal(signal.SIGTERM))
    assert run("methods") == (KILLED, "", "foveate: terminated.\n")
    assert signal.getsignal(signal.SIGTERM) is before


ASKED = ("--questions", "80", "--method", "v2drop", "--budget", "64", "--no-baselines", "--workers", "2")


@pytest.fixture
def evaluation(tmp_path):
    """An evaluation that goes on for long, in a session of its own."""
    program = forked(
        PROGRAM, "eval", *ASKED, "--cache", tmp_path,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    yield program
    if alive(program.pid):
        os.killpg(program.pid, signal.SIGKILL)


def test_kill_in_an_evaluation_loses_no_answer_and_leaves_no_process(tmp_path, evaluation):
    until = time.monotonic() + 300
    while len(lines_in(tmp_path)) < 2 and evaluation.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.2)
    evaluation.terminate()
    _, err = evaluation.communicate(timeout=60)
    assert (evaluation.returncode, err.splitlines()[-1]) == (KILLED, "foveate: terminated."), err
    assert [row for row in lines_in(tmp_path) if "sha256" not in row] == []
    until = time.monotonic() + 30
    while alive(evaluation.pid):
        assert time.monotonic() < until
        time.sleep(0.2)


def lines_in(folder):
    """The objects in a store's file."""
    return [json.loads(line) for file in folder.glob("*/part-*.jsonl") for line in file.read_text().splitlines()]


def test_a_thread_may_run_a_command(capsys):
    """Only the first thread may say what signals do."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(main, ["methods"]).result() == 0
    assert "v2drop" in capsys.readouterr().out
