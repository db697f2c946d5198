"""Processes that answer: what they say where their model cannot be loaded, and which device each takes."""

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.batch import workers
from foveate.batch.job import Job, run
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import deadly


@pytest.fixture
def process(monkeypatch):
    """A process of its own, as far as its state goes."""
    monkeypatch.setattr(workers, "_process", {})


def test_a_model_that_cannot_be_loaded_is_said_by_the_first_call(process, asking, tmp_path):
    workers._load(replace(asking, model=str(tmp_path)), 2)
    with pytest.raises(fv.InputError, match="cannot be loaded"):
        workers._about()
    with pytest.raises(fv.InputError, match="cannot be loaded"):
        workers._answer([])


def test_a_process_that_dies_costs_the_row_that_it_dies_of(answer, questions, asking, tmp_path):
    path = questions(7)
    answer(path, out="whole")
    asking = deadly(asking)
    summary = run(Job(input=path, out=tmp_path / "out", asking=asking), workers.Workers(asking, 1))
    assert (summary.answered, summary.bad, summary.left) == (6, 1, 0)
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")
    assert "died, alone too" in bad_in(tmp_path / "out")[6]["reason"]


class Broken:
    """A pool whose process has died."""

    def submit(self, *_):
        raise BrokenProcessPool("abruptly")

    def shutdown(self, **_):
        pass


def test_processes_that_die_one_after_the_other_are_one_line(asking, monkeypatch):
    monkeypatch.setattr(workers.Workers, "_pool", lambda self, place: Broken())
    said = pytest.raises(fv.InputError, match=r"Processes .* die.*fewer --workers: what was answered is kept")
    with workers.Workers(asking, 2) as place, said:
        place.about()
    with workers.Workers(asking, 2) as place, said:
        list(place.answered([[]], lambda: False))
    monkeypatch.setattr(workers, "DEATHS", 0)
    with workers.Workers(asking, 2) as place, said:
        place._submit(0, [])


def test_many_more_processes_than_cores_are_refused(asking, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with pytest.raises(fv.SettingError, match="1,000 models at a time are too many for this machine: take 16 at most"):
        workers.Workers(asking, 1000)
    workers.Workers(asking, 16)


def test_each_process_takes_the_next_device_unless_one_was_named(asking, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    anywhere = replace(asking, device="auto")
    assert [workers.placed(anywhere, place).device for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert workers.placed(asking, 1).device == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert workers.placed(anywhere, 1).device == "auto"
