"""Intervals of paired figures: pictures are drawn again, with all their questions and all methods at once."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Numbers", "Resampled", "estimate", "share", "wilson"]

RESAMPLES = 2000
Z = NormalDist().inv_cdf(0.975)  # 1.96: of 95 %

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


def wilson(hits: float, count: int) -> Estimate:
    """A share with its Wilson score interval, which has a width at 0 and at 1 too.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), from Wilson, "Probable inference, the law of succession, and
    statistical inference", JASA 22, 1927; recommended for small counts by Brown, Cai and DasGupta, "Interval estimation
    for a binomial proportion", Statistical Science 16, 2001. All of n right: from n / (n + z²) to 1.

    Args:
        hits: The share p, in [0, 1].
        count: How many independent trials n, 1 or more.
    """
    spread = Z * Z / count
    middle = hits + spread / 2
    half = sqrt(spread * (hits * (1 - hits) + spread / 4))
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return Estimate(hits, max(0.0, min(low, hits)), min(1.0, max(high, hits)))


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

    def proportion(self, values: Numbers) -> Estimate:
        """The mean of (questions,) shares, such as 1 for right and 0 for wrong, with its interval.

        Where all are 0 or all are 1, so is every resample, and a bootstrap interval has no width. There it is Wilson's,
        with the pictures for n: as if all questions about one picture were the same question.
        """
        counted = ~np.isnan(values)
        for edge in (0.0, 1.0):
            if counted.any() and (values[counted] == edge).all():
                return wilson(edge, len(np.unique(self._group[counted])))
        return self.mean(values)
