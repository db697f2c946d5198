"""Processes that answer: what they say where their model cannot be loaded, and which device each takes."""

from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.batch import workers


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


def test_a_process_that_died_is_one_line(monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    with pytest.raises(fv.InputError, match=r"died.*fewer --workers: what was answered is kept"), workers._explained():
        raise BrokenProcessPool("abruptly")


def test_each_process_takes_the_next_device_unless_one_was_named(asking, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    anywhere = replace(asking, device="auto")
    assert [workers.placed(anywhere, place).device for place in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert workers.placed(asking, 1).device == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert workers.placed(anywhere, 1).device == "auto"
