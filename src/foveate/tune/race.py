"""Settings tried on pictures, one picture after the other: what was tried is kept in a file, and hopeless ones stop."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import InputError
from foveate.methods.base import Method
from foveate.tune.forcing import Outcome, Target, outcomes
from foveate.tune.samples import About
from foveate.tune.sharing import Shared
from foveate.tune.workers import Crew

__all__ = ["Journal", "Race"]

FEWEST = 5
"""Pictures behind which a setting may be given up: the difference of two or three says nothing."""
HOPELESS = 2.5
"""How many standard errors a setting is behind the best, picture by picture, where it is given up."""


class Journal:
    """Outcomes by setting and picture, each written down as soon as it is known, so that a stopped search goes on.

    Args:
        path: A file of JSON lines; None keeps all in memory. A line that was cut off by a crash is left out.
        origin: What the outcomes depend on: the model, its weights, the versions.

    Raises:
        InputError: If the file cannot be written, or belongs to another model.
    """

    def __init__(self, path: Path | None = None, origin: str = "") -> None:
        self.path = path
        self.read = 0
        self._known: dict[tuple[str, str], list[Outcome]] = {}
        self._kept: dict[str, Any] = {}
        if path is None:
            return
        if path.exists():
            self._load(path, origin)
        else:
            self._append({"origin": origin})

    def _load(self, path: Path, origin: str) -> None:
        lines = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # the end of a run that was killed
        if not lines or lines[0].get("origin") != origin:
            raise InputError(
                f"{path} is of another model, or of other versions. Name another file, or delete it to begin anew."
            )
        for row in lines[1:]:
            if "kept" in row:
                self._kept[row["kept"]] = row["value"]
                continue
            pairs = zip(row["divergences"], row["agrees"], strict=True)
            self._known[row["method"], row["picture"]] = [Outcome(divergence, agrees) for divergence, agrees in pairs]
        self.read = len(self._known)

    def get(self, method: str, picture: str) -> list[Outcome] | None:
        """What is known of a method on a picture."""
        return self._known.get((method, picture))

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """Something else that a search that goes on shall find as it was: plain values, made when first asked for."""
        if name not in self._kept:
            self._kept[name] = make()
            self._append({"kept": name, "value": self._kept[name]})
        return self._kept[name]

    def add(self, method: str, picture: str, found: list[Outcome]) -> None:
        """Write down what a method came to."""
        self._known[method, picture] = found
        row = {
            "method": method,
            "picture": picture,
            "divergences": [outcome.divergence for outcome in found],
            "agrees": [outcome.agrees for outcome in found],
        }
        self._append(row)

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror}. Name another file.") from error


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
        self._shared = Shared(model)
        self._until = float("inf") if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self._until

    def unlimited(self) -> None:
        """Take the limit off: choosing and reporting are always done."""
        self._until = float("inf")

    def outcomes(self, method: Method, about: About) -> list[Outcome]:
        """What a method does to the answers about one picture."""
        name = method.to_json()
        known = self.journal.get(name, about.key)
        if known is not None:
            return known
        with self._shared.on(method, about.key):
            found = outcomes(self.model, about, self.targets[about.key], method)
        self.runs += 1
        self.journal.add(name, about.key, found)
        return found

    def score(self, method: Method, pictures: Sequence[About]) -> float | None:
        """Mean root divergence a question; None where the method stopped because it is hopeless, or time is up.

        Raises:
            SettingError: If the model cannot serve the method.
        """
        roots: list[float] = []
        means: list[float] = []  # of each picture
        for place, about in enumerate(pictures):
            if self.over and self._best:  # the first setting is run to the end
                return None
            self._run_ahead(method, pictures[place:])
            found = [outcome.root for outcome in self.outcomes(method, about)]
            roots += found
            means.append(fmean(found))
            if self._is_hopeless(means):
                return None
        score = fmean(roots)
        if score < self._best_score:
            self._best, self._best_score = means, score
        return score

    def _run_ahead(self, method: Method, pictures: Sequence[About]) -> None:
        """Let the crew run as many of the next pictures as it has processes, once those before are known."""
        if self.crew is None or not pictures or self.journal.get(method.to_json(), pictures[0].key) is not None:
            return
        ahead = pictures[: self.crew.jobs]
        unknown = [about for about in ahead if self.journal.get(method.to_json(), about.key) is None]
        for about, found in zip(unknown, self.crew.outcomes(method, unknown, self.targets), strict=True):
            self.runs += 1
            self.journal.add(method.to_json(), about.key, found)

    def _is_hopeless(self, means: Sequence[float]) -> bool:
        """Whether a setting is so far behind the best on the same pictures that the others need not be run.

        Differences are taken picture by picture: pictures differ far more than settings do, and a ratio to a best that
        is near 0 on the first of them would end good ones.
        """
        if len(means) < FEWEST or not self._best:
            return False
        behind = np.array(means) - np.array(self._best[: len(means)])
        return bool(behind.mean() > HOPELESS * behind.std(ddof=1) / len(means) ** 0.5)

    def column(self, method: Method, pictures: Sequence[About], figure: Callable[[Outcome], float]) -> NDArray[Any]:
        """(questions,) a figure of each answer."""
        for start in range(len(pictures)):
            self._run_ahead(method, pictures[start:])
        values = [figure(outcome) for about in pictures for outcome in self.outcomes(method, about)]
        return np.array(values, dtype=np.float64)
