"""Time ratios one can trust: interleaved runs in one process, the median ratio of a round, an interval."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from statistics import median
from typing import Any, TypeVar

import numpy as np

__all__ = ["Ratio", "ratio", "rounds"]

RESAMPLES = 2000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one run's time compares with another's.

    Attributes:
        median: Median over rounds of run time over base time; below 1 is faster than the base.
        low, high: 95 % bootstrap interval of that median.
        rounds: How many rounds there were.
    """

    median: float
    low: float
    high: float
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"

    def inverse(self) -> "Ratio":
        """The same as a speed-up: base time over run time."""
        return Ratio(1 / self.median, 1 / self.high, 1 / self.low, self.rounds)


def rounds(
    runs: Mapping[str, Callable[[], T]],
    count: int,
    seed: int = 0,
    after: Callable[[], object] = lambda: None,
    beside: Mapping[str, str] | None = None,
) -> Iterator[dict[str, T]]:
    """Call every run once a round, in an order drawn for each round, and yield what they answered, by name.

    A round of warm-up comes before, whose answers are not yielded; `after` is called after every round, after that too.
    A machine's speed drifts within a round: runs that `beside` gives the same name to come one right after the other,
    in an order drawn too, so that their ratio has little of it.
    """
    draw, sets = Random(seed), dict[str, list[str]]()
    for name in runs:
        sets.setdefault((beside or {}).get(name, name), []).append(name)
    for number in range(count + 1):
        order = [name for some in draw.sample(list(sets.values()), len(sets)) for name in draw.sample(some, len(some))]
        answers = {name: runs[name]() for name in order}
        after()
        if number:
            yield {name: answers[name] for name in runs}


def ratio(run: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of two interleaved series of times, round by round, with a percentile bootstrap."""
    each = np.asarray(run) / np.asarray(base)
    draws = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(np.median(each[draws], axis=1), [0.025, 0.975])
    return Ratio(median(each.tolist()), float(low), float(high), len(each))
