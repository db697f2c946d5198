"""Several processes that try one setting on several pictures at once, each with a model of its own.

Tensors go from one to another as bytes: torch would keep a file open for each of them, and files are few.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from foveate.ask.loading import reloading
from foveate.ask.vlm import VLM
from foveate.contract import catalogue
from foveate.contract.method import Method
from foveate.errors import InputError, SettingError
from foveate.runs.crew import Pool, Stopped, Worker
from foveate.tune.forcing import Outcome, Target, answered, outcomes
from foveate.tune.samples import About

__all__ = ["Crew"]


class Crew:
    """Processes that wait for settings.

    Args:
        model: A `VLM` that another process can load by its name.
        pictures: All that may be asked about.
        workers: How many processes.

    Raises:
        SettingError: If the model is a bare one, which another process cannot load.
    """

    def __init__(self, model: Any, pictures: Sequence[About], workers: int) -> None:
        if not isinstance(model, VLM):
            raise SettingError(f"workers={workers} needs a VLM (foveate.load): other processes load it by its name.")
        self.workers = workers
        self._name = model.name
        by_key = pickle.dumps({about.key: about for about in pictures})
        self._pool = Pool(partial(_begin, reloading(model), by_key), workers)
        self._pool.__enter__()

    def close(self) -> None:
        """End the processes."""
        self._pool.__exit__(None, None, None)

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

    def _map(self, call: Callable[..., Any], given: Sequence[Any]) -> list[Any]:
        results: dict[int, Any] = {}
        items = ((place, call, one) for place, one in enumerate(given))
        for (place, *_), made in self._pool.work(items, lambda: False):
            if made is None:
                raise InputError(
                    f"A process that tries settings died, perhaps for want of memory for {self._name}. Run again with "
                    "one job: with the same --state, what was tried is kept."
                )
            (results[place],) = made
        return [results[place] for place in range(len(given))]


def _begin(reload: Callable[[], VLM], pictures: bytes, place: int, count: int) -> Worker:
    """The task of a process; see `foveate.runs.crew.Task`."""
    return partial(_work, reload().model, pickle.loads(pictures))


def _work(model: Any, pictures: Mapping[str, About], item: Any, stopped: Stopped) -> Iterator[list[Any]]:
    _, call, given = item
    yield [call(model, pictures, given)]


def _answers(max_new_tokens: int, model: Any, pictures: Mapping[str, About], key: str) -> bytes:
    return pickle.dumps(answered(model, pictures[key], max_new_tokens))


def _outcomes(
    values: Mapping[str, Any], model: Any, pictures: Mapping[str, About], asked: bytes
) -> list[list[Outcome]]:
    wanted: dict[str, list[Target]] = pickle.loads(asked)
    return outcomes(model, [pictures[key] for key in wanted], list(wanted.values()), catalogue.from_dict(values))
