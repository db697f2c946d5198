"""Several processes that try one setting on several pictures at once, each with a model of its own.

Tensors go from one to another as bytes: torch would keep a file open for each of them, and files are few.
"""

import multiprocessing
import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

import torch

from foveate.ask.loading import load
from foveate.ask.vlm import VLM
from foveate.contract import catalogue
from foveate.contract.method import Method
from foveate.errors import InputError, SettingError
from foveate.tune.forcing import Outcome, Target, answered, outcomes
from foveate.tune.samples import About

__all__ = ["Crew"]


class Crew:
    """Processes that wait for settings.

    Args:
        model: A `VLM` that another process can load by its name.
        pictures: All that may be asked about.
        jobs: How many processes.

    Raises:
        SettingError: If the model is a bare one, which another process cannot load.
    """

    def __init__(self, model: Any, pictures: Sequence[About], jobs: int) -> None:
        if not isinstance(model, VLM):
            raise SettingError(f"jobs={jobs} needs a VLM (foveate.load): other processes load it by its name.")
        setup = model.to_dict()
        reload = partial(load, model.name, device=setup["device"], dtype=setup["dtype"], attention=setup["attention"])
        by_key = pickle.dumps({about.key: about for about in pictures})
        self.jobs = jobs
        self._name = model.name
        self._pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(reload, by_key),
        )

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def answers(self, pictures: Sequence[About], max_new_tokens: int) -> list[list[Target]]:
        """The full model's answers about each picture."""
        made = self._map(partial(_answers, max_new_tokens), [about.key for about in pictures])
        return [pickle.loads(answers) for answers in made]

    def outcomes(
        self, method: Method, batches: Sequence[Sequence[About]], wanted: Mapping[str, list[Target]]
    ) -> list[list[list[Outcome]]]:
        """What a method does to the answers about each picture of each batch; a process runs a batch.

        Raises:
            InputError: If a process died.
        """
        asked = [pickle.dumps({about.key: wanted[about.key] for about in batch}) for batch in batches]
        return self._map(partial(_outcomes, method.to_dict()), asked)

    def _map(self, call: Callable[[Any], Any], given: Sequence[Any]) -> list[Any]:
        try:
            return list(self._pool.map(call, given))
        except BrokenProcessPool as error:
            raise InputError(
                f"A process that tries settings died: for want of memory, or because it could not load {self._name} "
                "by its name. Run again with one job: with the same state file, what was tried is kept."
            ) from error


_process: dict[str, Any] = {}
"""The model and pictures of a process."""


def _begin(reload: Callable[[], VLM], pictures: bytes) -> None:
    """In a new process: one thread, Ctrl-C is for the parent to handle, and the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _process.update(model=reload().model, pictures=pickle.loads(pictures))


def _answers(max_new_tokens: int, key: str) -> bytes:
    return pickle.dumps(answered(_process["model"], _process["pictures"][key], max_new_tokens))


def _outcomes(values: Mapping[str, Any], asked: bytes) -> list[list[Outcome]]:
    method = catalogue.from_dict(values)
    wanted: dict[str, list[Target]] = pickle.loads(asked)
    pictures = [_process["pictures"][key] for key in wanted]
    return outcomes(_process["model"], pictures, list(wanted.values()), method)
