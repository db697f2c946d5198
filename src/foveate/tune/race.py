"""Settings tried on pictures, one picture after the other: what was tried is kept in a file, and hopeless ones stop."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.ask.batch import parts
from foveate.contract.method import Method
from foveate.runs.store import Store, open_store
from foveate.tune.batches import batched
from foveate.tune.forcing import Outcome, Target, outcomes
from foveate.tune.samples import About
from foveate.tune.workers import Crew

__all__ = ["Journal", "Race", "is_above_zero", "open_journal"]

FEWEST = 5
"""Pictures behind which a setting may be given up: the difference of two or three says nothing."""
HOPELESS = 2.5
"""How many standard errors a setting is behind the best, picture by picture, where it is given up."""


class Journal:
    """Outcomes by setting and picture, each kept as soon as it is known, so that a stopped search goes on.

    Args:
        store: Where they are kept; None keeps all in memory.
    """

    def __init__(self, store: Store | None = None) -> None:
        self._store = store
        self._known: dict[tuple[str, str], list[Outcome]] = {}
        for row in () if store is None else store.read(set()):
            self._known[row["method"], row["picture"]] = [Outcome(*pair) for pair in row["outcomes"]]

    def __len__(self) -> int:
        """How many pictures methods were tried on, summed over methods."""
        return len(self._known)

    def __contains__(self, tried: tuple[str, str]) -> bool:
        """Whether a method was tried on a picture: (its setting, the picture's key)."""
        return tried in self._known

    def __getitem__(self, tried: tuple[str, str]) -> list[Outcome]:
        """What it came to."""
        return self._known[tried]

    def add(self, method: str, picture: str, found: list[Outcome]) -> None:
        """Keep what a method came to."""
        self._known[method, picture] = found
        if self._store is not None:
            pairs = [(one.divergence, one.agrees) for one in found]
            self._store.add([{"method": method, "picture": picture, "outcomes": pairs}])


@contextmanager
def open_journal(folder: Path | None, origin: str) -> Iterator[Journal]:
    """The outcomes that are kept in a folder; None keeps them in memory.

    Args:
        folder: Created if it is missing.
        origin: What outcomes depend on: the model, its weights, the samples, the versions.

    Raises:
        InputError: If the folder cannot be used, or belongs to another search.
    """
    if folder is None:
        yield Journal()
        return
    with open_store(folder, "method", "picture", checked=True) as store:
        store.require("origin", origin, "another model, other samples or other versions")
        yield Journal(store)


def is_above_zero(figures: NDArray[Any], errors: float) -> bool:
    """Whether the mean of (pictures,) figures is more than so many standard errors above 0."""
    return bool(figures.mean() > errors * figures.std(ddof=1) / len(figures) ** 0.5)


class Race:
    """Methods on pictures of which the full model's answers are known.

    Args:
        model: Of transformers.
        targets: The full model's answers by picture.
        journal: What is known already; it grows.
        seconds: How long methods may be tried; None is no limit.
        crew: Processes that run pictures at once; None runs them here.

    Attributes:
        runs: Pictures that were run, not read from the journal.
    """

    def __init__(
        self,
        model: Any,
        targets: dict[str, list[Target]],
        journal: Journal,
        seconds: float | None = None,
        crew: Crew | None = None,
    ) -> None:
        self.crew = crew
        self.model = model
        self.targets = targets
        self.journal = journal
        self.runs = 0
        self._best: list[float] = []  # the best setting's mean root of each picture
        self._best_score = float("inf")
        self._until = float("inf") if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._until

    def unlimited(self) -> None:
        """Take the limit off: choosing and reporting are always done."""
        self._until = float("inf")

    def outcomes(self, method: Method, pictures: Sequence[About]) -> Iterator[list[list[Outcome]]]:
        """What a method does to the answers about each picture: so many pictures at a time as run at once."""
        workers = 1 if self.crew is None else self.crew.workers
        batches = list(batched(self.model, method, pictures, -(-FEWEST // workers)))
        for at_once in parts(batches, workers):
            yield self._known(method, at_once)

    def _known(self, method: Method, batches: Sequence[Sequence[About]]) -> list[list[Outcome]]:
        """What is known of a method on each picture, once those of which nothing is have been run."""
        name = json.dumps(method.to_dict())
        missing = [[about for about in batch if (name, about.key) not in self.journal] for batch in batches]
        missing = [batch for batch in missing if batch]
        for batch, found in zip(missing, self._run(method, missing), strict=True):
            for about, of_picture in zip(batch, found, strict=True):
                self.runs += 1
                self.journal.add(name, about.key, of_picture)
        return [self.journal[name, about.key] for batch in batches for about in batch]

    def _run(self, method: Method, batches: Sequence[Sequence[About]]) -> Iterator[list[list[Outcome]]]:
        if self.crew is not None:
            yield from self.crew.outcomes(method, batches, self.targets)
            return
        for batch in batches:
            wanted = [self.targets[about.key] for about in batch]  # perhaps made now, by the full model
            yield outcomes(self.model, batch, wanted, method)

    def score(self, method: Method, pictures: Sequence[About]) -> float | None:
        """Mean root divergence a question; None where the method stopped because it is hopeless, or time is up.

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
                return None
            if self.over and self._best and len(means) < len(pictures):  # the first setting is run to the end
                return None
        score = fmean(roots)
        if score < self._best_score:
            self._best, self._best_score = means, score
        return score

    def _is_hopeless(self, means: Sequence[float]) -> bool:
        """Whether a setting is so far behind the best on the same pictures that the others need not be run.

        Differences are taken picture by picture: pictures differ far more than settings do, and a ratio to a best that
        is near 0 on the first of them would end good ones.
        """
        if len(means) < FEWEST or not self._best:
            return False
        return is_above_zero(np.array(means) - np.array(self._best[: len(means)]), HOPELESS)

    def column(self, method: Method, pictures: Sequence[About], figure: Callable[[Outcome], float]) -> NDArray[Any]:
        """(questions,) a figure of each answer."""
        found = [of_picture for at_once in self.outcomes(method, pictures) for of_picture in at_once]
        return np.array([figure(outcome) for of_picture in found for outcome in of_picture], dtype=np.float64)
