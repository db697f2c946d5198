"""Time ratios one can trust: interleaved runs in one process, the median ratio of a round, an interval."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

__all__ = ["Ratio", "interleave", "ratio"]

RESAMPLES = 2000


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


def interleave(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    *,
    after: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, list[float]]:
    """Time every run once a round, after one round of warm-up: seconds of each, in order of rounds.

    The order turns by one place a round, so that no run always follows the same other one.
    `after` is called after every round, the warm-up included.
    """
    names = list(runs)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            runs[name]()
            if number:
                seconds[name].append(clock() - start)
        after()
    return seconds


def ratio(run: Sequence[float], base: Sequence[float]) -> Ratio:
    """The ratio of two interleaved series of times, round by round, with a percentile bootstrap."""
    each = np.asarray(run) / np.asarray(base)
    draws = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(np.median(each[draws], axis=1), [0.025, 0.975])
    return Ratio(median(each.tolist()), float(low), float(high), len(each))
