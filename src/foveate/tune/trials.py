"""Settings tried on pictures, batch by batch: what was tried is kept in a folder, and hopeless settings stop."""

import json
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate import registry
from foveate.ask.batch import parts
from foveate.ask.loading import reloading
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import SettingError
from foveate.runs.crew import Crew, Here, Pool, Stopped, Worker
from foveate.runs.listener import Advance, unheard
from foveate.runs.store import Store, open_store
from foveate.runs.working import work_through
from foveate.tune.forcing import Fidelity, Target, answered, beginning, looks, outcomes
from foveate.tune.parts import About

FEWEST = 5
"""Pictures behind which a setting may be given up, or chosen: the difference of two or three says nothing."""
HOPELESS = 2.5
"""How many standard errors a setting is behind the best, picture by picture, where it is given up."""
TOKENS = 4096
"""Vision tokens of a batch at most: with more, one picture keeps a processor busy."""


@contextmanager
def open_trials(
    model: Any,
    pictures: Sequence[About],
    max_new_tokens: int,
    *,
    state: Path | None = None,
    origin: str = "",
    workers: int = 1,
    advance: Advance = unheard,
) -> Iterator["Trials"]:
    """Trials on these pictures, with the processes that make them, while the context lasts.

    Args:
        model: A `VLM`; with one worker it may be a model of transformers.
        pictures: All that may be asked about.
        max_new_tokens: The longest answer of the full model.
        state: Where outcomes are kept, a folder; created if it is missing. None keeps them in memory.
        origin: What outcomes depend on: the model, its weights, the samples, the versions.
        workers: Processes that run pictures at once, each with a model of its own; with 1 this one does.
        advance: Called with 1 after each picture that the full model has answered.

    Raises:
        InputError: If the folder cannot be used, or belongs to another search.
        SettingError: If another process cannot load the model.
    """
    with ExitStack() as opened:
        store = None
        if state is not None:
            store = opened.enter_context(open_store(state, "method", "picture", checked=True))
            store.require("origin", origin, "another model, other samples or other versions")
        inner = model.model if isinstance(model, VLM) else model
        by_key = {about.key: about for about in pictures}
        here = partial(_work, inner, by_key, max_new_tokens)
        crew: Crew = Here(lambda place, count: here)
        if workers > 1:
            if not isinstance(model, VLM):
                raise SettingError(
                    f"workers={workers} needs a VLM (foveate.load): other processes load it by its name."
                )
            # As bytes: torch would keep a file open for each tensor, and files are few.
            crew = Pool(partial(_begin, reloading(model), pickle.dumps(by_key), max_new_tokens), workers)
        with crew:
            yield Trials(inner, crew, store, workers, advance)


def _begin(reload: Callable[[], VLM], pictures: bytes, max_new_tokens: int, place: int, count: int) -> Worker:
    """The task of a process; see `foveate.runs.crew.Task`."""
    return partial(_work, reload().model, pickle.loads(pictures), max_new_tokens)


def _work(
    model: Any, pictures: Mapping[str, About], max_new_tokens: int, item: Any, stopped: Stopped
) -> Iterator[list[Any]]:
    """What a method does to the answers about each picture of a batch; without a method, the full model's answers.

    `item` is the batch's number, the method's values or None, the pictures' keys and their targets.
    """
    number, values, keys, wanted = item
    batch = [pictures[key] for key in keys]
    if values is None:
        yield [(number, [answered(model, about, max_new_tokens) for about in batch])]
    else:
        yield [(number, outcomes(model, batch, wanted, registry.from_dict(values)))]


class Trials:
    """Methods on pictures of which the full model's answers are known, or made when they are first asked for.

    Args:
        model: Of transformers.
        crew: Who runs pictures.
        store: What is known already; it grows. None keeps all in memory.
        workers: How many batches run at once.
        advance: Called with 1 after each picture that the full model has answered.

    Attributes:
        targets: The full model's answers by picture.
        runs: Pictures that were run, not read from the store.
    """

    def __init__(
        self,
        model: Any,
        crew: Crew,
        store: Store | None = None,
        workers: int = 1,
        advance: Advance = unheard,
    ) -> None:
        self.targets: dict[str, list[Target]] = {}
        self.runs = 0
        self._model = model
        self._crew = crew
        self._store = store
        self._workers = workers
        self._advance = advance
        self._known: dict[tuple[str, str], list[Fidelity]] = {}
        for row in () if store is None else store.read(set()):
            self._known[row["method"], row["picture"]] = [Fidelity(*pair) for pair in row["outcomes"]]
        self.restart()

    def restart(self) -> None:
        """Begin another search: no setting leads yet. What is known of settings stays."""
        self._best: list[float] = []  # the best setting's mean root of each picture
        self._best_score = float("inf")

    def outcomes(self, method: Method, pictures: Sequence[About]) -> Iterator[list[list[Fidelity]]]:
        """What a method does to the answers about each picture: so many pictures at a time as run at once."""
        batches = list(batched(self._model, method, pictures, -(-FEWEST // self._workers)))
        for at_once in parts(batches, self._workers):
            yield self._tried(method, at_once)

    def _tried(self, method: Method, batches: Sequence[Sequence[About]]) -> list[list[Fidelity]]:
        """What is known of a method on each picture, once those of which nothing is have been run."""
        values = method.to_dict()
        name = json.dumps(values)
        missing = [[about.key for about in batch if (name, about.key) not in self._known] for batch in batches]
        missing = [keys for keys in missing if keys]
        self._answer([key for keys in missing for key in keys])
        asked = [(values, keys, [self.targets[key] for key in keys]) for keys in missing]
        for keys, found in zip(missing, self._run(asked), strict=True):
            for key, of_picture in zip(keys, found, strict=True):
                self._keep(name, key, of_picture)
        return [self._known[name, about.key] for batch in batches for about in batch]

    def _keep(self, name: str, key: str, found: list[Fidelity]) -> None:
        self.runs += 1
        self._known[name, key] = found
        if self._store is not None:
            pairs = [(one.divergence, one.agrees) for one in found]
            self._store.add([{"method": name, "picture": key, "outcomes": pairs}])

    def _answer(self, keys: Sequence[str]) -> None:
        """The full model's answers about pictures where they are not known: a search that goes on needs few."""
        unknown = [key for key in keys if key not in self.targets]
        for key, (answers,) in zip(unknown, self._run([(None, [key], ()) for key in unknown]), strict=True):
            self.targets[key] = answers
            self._advance(1)

    def _run(self, asked: Sequence[tuple[Any, ...]]) -> list[Any]:
        """What comes of each item, in their order."""
        results: dict[int, Any] = {}
        work_through([(number, *item) for number, item in enumerate(asked)], self._crew, results.update)
        return [results[number] for number in range(len(asked))]

    def score(self, method: Method, pictures: Sequence[About]) -> tuple[float, bool]:
        """Mean root divergence a question, and whether all pictures were run.

        A setting that is hopeless stops. Its score is then the best one's, and how far it was behind that on the
        pictures that were run.

        Raises:
            SettingError: If the model cannot serve the method.
        """
        roots: list[float] = []
        means: list[float] = []  # of each picture
        for at_once in self.outcomes(method, pictures):
            for found in at_once:
                roots += [outcome.root for outcome in found]
                means.append(fmean(outcome.root for outcome in found))
            if self._is_hopeless(means):
                return self._best_score + fmean(means) - fmean(self._best[: len(means)]), False
        score = fmean(roots)
        if score < self._best_score:
            self._best, self._best_score = means, score
        return score, True

    def _is_hopeless(self, means: Sequence[float]) -> bool:
        """Whether a setting is so far behind the best on the same pictures that the others need not be run.

        Differences are taken picture by picture: pictures differ far more than settings do, and a ratio to a best that
        is near 0 on the first of them would end good ones.
        """
        if len(means) < FEWEST or not self._best:
            return False
        return is_above_zero(np.array(means) - np.array(self._best[: len(means)]), HOPELESS)

    def column(self, method: Method, pictures: Sequence[About], figure: Callable[[Fidelity], float]) -> NDArray[Any]:
        """(questions,) a figure of each answer."""
        found = [of_picture for at_once in self.outcomes(method, pictures) for of_picture in at_once]
        return np.array([figure(outcome) for of_picture in found for outcome in of_picture], dtype=np.float64)


def is_above_zero(figures: NDArray[Any], errors: float) -> bool:
    """Whether the mean of (pictures,) figures is more than so many standard errors above 0."""
    return bool(figures.mean() > errors * figures.std(ddof=1) / len(figures) ** 0.5)


# -- batches ------------------------------------------------------------------------------------------------------


def batched(model: Any, method: Method, pictures: Sequence[About], most: int) -> Iterator[list[About]]:
    """Neighbours whose prompts begin alike, at most `most` and so many tokens in a batch: always the same ones."""
    batch: list[About] = []
    tokens = 0
    for about in pictures:
        runs = 1 if looks(model, method, about.samples) else len(about.samples)  # of the picture, or with each question
        size = runs * about.samples[0].vision_tokens
        if batch and (len(batch) == most or tokens + size > TOKENS or _kind(model, about) != _kind(model, batch[0])):
            yield batch
            batch, tokens = [], 0
        batch.append(about)
        tokens += size
    if batch:
        yield batch


def _kind(model: Any, about: About) -> Hashable:
    """What must be equal in a batch: the prompt's ids up to and with the pictures, and the shapes of all else."""
    inputs = about.samples[0].inputs
    text = inputs["input_ids"].shape
    shapes = [(name, tuple(value.shape)) for name, value in inputs.items() if value.shape != text]
    return beginning(model, about.samples[0]), tuple(sorted(shapes))
