"""Intervals of paired figures: pictures are drawn again, with all their questions and all methods at once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Numbers", "Resampled", "estimate", "share"]

RESAMPLES = 2000

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain values, rounded to a hundred thousandth."""
        return {name: round(value, 5) for name, value in asdict(self).items()}


def estimate(figures: Numbers) -> Estimate:
    """A figure and its interval.

    Args:
        figures: (1 + resamples,): the figure itself, then that of every resample; NaN where a resample has none.
    """
    low, high = np.nanquantile(figures[1:], [0.025, 0.975])
    return Estimate(float(figures[0]), float(low), float(high))


def share(figures: Numbers, whole: Numbers) -> Estimate | None:
    """One figure as a share of another, resample by resample; None where the other is zero in any of them.

    Shapes: two (1 + resamples,) arrays from the same resamples.
    """
    if (whole == 0).any():
        return None
    return estimate(figures / whole)


class Resampled:
    """A cluster bootstrap: the same resampled pictures for every figure, so that differences are paired.

    Questions about one picture share its luck, so pictures are drawn, not questions (percentile intervals;
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Args:
        groups: (questions,) which picture each question is about; any hashable labels.
        seed: Of the resampling.

    Attributes:
        count: How many pictures there are.
    """

    def __init__(self, groups: Sequence[Any], seed: int = 0) -> None:
        labels, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self.count = len(labels)
        chances = np.full(self.count, 1 / max(1, self.count))
        draws = np.random.default_rng(seed).multinomial(self.count, chances, RESAMPLES)
        self._weights = draws.astype(np.float64)  # (resamples, pictures)

    def means(self, values: Numbers) -> Numbers:
        """The plain mean, then that of every resample.

        Shapes: (questions,), NaN where a question does not count -> (1 + resamples,).
        """
        counted = ~np.isnan(values)
        sums = np.bincount(self._group, np.where(counted, values, 0.0), self.count)
        counts = np.bincount(self._group, counted, self.count)
        with np.errstate(invalid="ignore"):  # a resample without any question of a rare task has no mean
            drawn = (self._weights @ sums) / (self._weights @ counts)
        means: Numbers = np.append(sums.sum() / counts.sum(), drawn)
        return means

    def mean(self, values: Numbers) -> Estimate:
        """The mean of (questions,) values with its interval."""
        return estimate(self.means(values))
