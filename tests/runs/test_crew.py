"""Processes that work: what they say where they cannot begin or die, and which device each takes."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.batch.job import Job, run
from foveate.runs import crew
from foveate.runs.crew import Pool, device_at
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import deadly


@pytest.fixture
def process(monkeypatch):
    """A process of its own, as far as its state goes."""
    monkeypatch.setattr(crew, "_process", {})
    monkeypatch.setattr(crew.signal, "signal", lambda *_: None)
    monkeypatch.setattr(crew, "_end_with_parent", lambda: None)


def test_a_model_that_cannot_be_loaded_is_said_by_the_first_call(process, asking, tmp_path):
    crew._begin(replace(asking, model=str(tmp_path)).begin, 0, 2, threading.Event())
    for item in (None, []):
        with pytest.raises(fv.InputError, match="cannot be loaded"):
            crew._ask(item)


def test_a_process_that_dies_costs_the_row_that_it_dies_of(answer, questions, asking, tmp_path, monkeypatch):
    copies = multiprocessing.get_context("fork")  # begin sooner
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: copies)
    path = questions(7)
    answer(path, out="whole")
    asking = deadly(asking)
    summary = run(Job(input=path, out=tmp_path / "out", asking=asking), Pool(asking.begin, 1))
    assert (summary.answered, summary.bad, summary.left) == (6, 1, 0)
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")
    assert "died, even alone" in bad_in(tmp_path / "out")[6]["reason"]


def test_processes_that_die_one_after_the_other_are_one_line(asking, monkeypatch):
    def dead(self, place, item):
        future = Future()
        future.set_exception(BrokenProcessPool("abruptly"))
        return future

    monkeypatch.setattr(Pool, "_ask", dead)
    monkeypatch.setattr(crew, "DEATHS", 2)
    match = r"Processes die on every .*fewer --workers: the answers so far are kept"
    with Pool(asking.begin, 2) as pool:
        with pytest.raises(fv.InputError, match=match):
            pool.about()
        with pytest.raises(fv.InputError, match=match):
            list(pool.work(iter(range(9)), lambda: False))


def test_many_more_processes_than_cores_are_refused(asking, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(fv.SettingError, match="1,000 models at a time are too many for this machine: use 16 at most"):
        Pool(asking.begin, 1000)
    Pool(asking.begin, 16)


def test_each_process_takes_the_next_device_unless_one_was_named(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [device_at(place, "auto") for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_at(1, "cpu") == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert device_at(1, "auto") == "auto"


SCRIPT = """
import sys
from foveate.runs.crew import Pool
from foveate.runs.store import open_store

def task(place, count):
    return lambda item, stopped: iter([[item]])

with open_store(__import__("pathlib").Path(sys.argv[1]), "row"), Pool(task, 2) as pool:
    print(list(pool.work(iter(range(3)), lambda: False)))
"""


def test_a_script_without_a_guard_is_told_in_one_line(tmp_path):
    (script := tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, tmp_path / "out"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "__main__" in done.stderr.splitlines()[-1]
    assert done.stderr.count("Traceback") == 1
