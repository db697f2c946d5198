"""Several processes that try one setting on several pictures at once, each with a model of its own."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from foveate.ask.loading import load
from foveate.ask.vlm import VLM
from foveate.errors import InputError, SettingError
from foveate.methods import catalogue
from foveate.tune.forcing import Outcome, Target, features_kept, outcomes
from foveate.tune.samples import About

__all__ = ["Crew"]


class Crew:
    """Processes that wait for settings.

    Args:
        model: A `VLM` that another process can load by its name.
        pictures: All that may be asked about.
        targets: The full model's answers by picture.
        jobs: How many processes.

    Raises:
        SettingError: If the model is a bare one, which another process cannot load.
    """

    def __init__(self, model: Any, pictures: Sequence[About], targets: Mapping[str, list[Target]], jobs: int) -> None:
        if not isinstance(model, VLM):
            raise SettingError(f"jobs={jobs} needs a VLM (foveate.load): other processes load it by its name.")
        setup = model.to_dict()
        reload = partial(load, model.name, device=setup["device"], dtype=setup["dtype"], attention=setup["attention"])
        by_key = {about.key: about for about in pictures}
        self.jobs = jobs
        self._pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(reload, by_key, dict(targets)),
        )

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def outcomes(self, method: Any, pictures: Sequence[About]) -> list[list[Outcome]]:
        """What a method does to the answers about each picture.

        Raises:
            InputError: If a process died.
        """
        try:
            return list(self._pool.map(partial(_outcomes, method.to_dict()), [about.key for about in pictures]))
        except BrokenProcessPool as error:
            raise InputError(
                "A process that tried settings died, perhaps for want of memory. Run again with one job: with the "
                "same state file, what was tried is kept."
            ) from error


_process: dict[str, Any] = {}
"""The model, pictures and answers of a process."""


def _begin(reload: Callable[[], VLM], pictures: Mapping[str, About], targets: Mapping[str, list[Target]]) -> None:
    """In a new process: one thread, Ctrl-C is for the parent to handle, and the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _process.update(model=reload().model, pictures=pictures, targets=targets, features={})


def _outcomes(values: Mapping[str, Any], key: str) -> list[Outcome]:
    method = catalogue.from_dict(values)
    with features_kept(_process["model"], method, _process["features"], key):
        return outcomes(_process["model"], _process["pictures"][key], _process["targets"][key], method)
