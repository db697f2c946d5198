"""Intervals of paired figures: over rounds, or over pictures with all their questions and all methods."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from math import exp, fsum, isnan, lgamma, log, log1p, nan, sqrt
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from foveate.errors import SettingError

Z = NormalDist().inv_cdf(0.975)  # 1.96: of 95 %
RESAMPLES = 2000
FEWER = 200
"""Resamples of a figure that is no mean, so that its own function runs on each."""
LEAST = 5
"""Pictures below which a cluster bootstrap is far too narrow: the interval of a figure then says nothing."""
RISK = 0.1
"""δ: how often a calibration may come to a threshold that does not keep what is promised."""
ROUNDING = 1e-12
"""Shares that differ by less differ by rounding errors alone."""

Numbers = NDArray[np.float64]
End = Annotated[float, BeforeValidator(lambda end: nan if end is None else end)]
"""An interval's end; in JSON, which has no NaN, one that says nothing is null."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval; of too few pictures, both ends are NaN: it says nothing."""

    value: float
    low: End
    high: End

    def to_dict(self) -> dict[str, float | None]:
        """Plain values to a hundred thousandth, and no zero negative; None for an end that says nothing."""
        return {name: None if isnan(end) else round(end, 5) + 0.0 for name, end in asdict(self).items()}


def estimate(figures: Numbers) -> Estimate:
    """A figure and its interval.

    Shape: (1 + resamples,): the figure itself, then that of every resample; NaN where a resample has none.
    """
    if np.isnan(figures[1:]).all():
        return Estimate(float(figures[0]), nan, nan)
    low, high = np.nanquantile(figures[1:], [0.025, 0.975])
    return Estimate(float(figures[0]), float(low), float(high))


def median_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median of independent values with its percentile bootstrap.

    Args:
        values: One or more.
        seed: Of the resampling.
    """
    array = np.asarray(values)
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    low, high = np.quantile(np.median(array[draws], axis=1), [0.025, 0.975])
    return Estimate(float(np.median(array)), float(low), float(high))


def share(figures: Numbers, whole: Numbers) -> Estimate | None:
    """One figure as a share of another, resample by resample; None where the other is zero in any of them.

    Shapes: two (1 + resamples,) arrays from the same resamples.
    """
    if (whole == 0).any():
        return None
    return estimate(figures / whole)


def wilson(hits: float, count: float) -> Estimate:
    """A share with its Wilson score interval, which has a width at 0 and at 1 too.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), from Wilson, "Probable inference, the law of succession, and
    statistical inference", JASA 22, 1927; recommended for small counts by Brown, Cai and DasGupta, "Interval estimation
    for a binomial proportion", Statistical Science 16, 2001. All of n right: from n / (n + z²) to 1.

    Args:
        hits: The share p, in [0, 1].
        count: How many independent trials n.
    """
    per_trial = Z * Z / count
    middle = hits + per_trial / 2
    half = sqrt(per_trial * (hits * (1 - hits) + per_trial / 4))
    low, high = (middle - half) / (1 + per_trial), (middle + half) / (1 + per_trial)
    return Estimate(hits, max(0.0, min(low, hits)), min(1.0, max(high, hits)))


@cache
def bound(wrong: int, samples: int, risk: float) -> float:
    """U(k, n): the share that k of n do not exceed with probability 1 − δ, after Clopper and Pearson (1934).

    The p at which k or fewer of n have probability δ, which is the 1 − δ quantile of Beta(k + 1, n − k); 1 if k = n. Of
    the two numbers beside it, the larger.
    """
    if not 0 <= wrong <= samples or not 0 < risk < 1:
        raise SettingError(f"wrong is 0 to samples, and risk between 0 and 1; got {wrong} of {samples} and {risk}.")
    if wrong == samples:
        return 1.0
    # log C(n, i), for each number i of hits that is no more than k
    ways = [lgamma(samples + 1) - lgamma(i + 1) - lgamma(samples - i + 1) for i in range(wrong + 1)]
    low, high = wrong / samples, 1.0
    while low < (middle := (low + high) / 2) < high:
        hit, miss = log(middle), log1p(-middle)
        if fsum(exp(way + i * hit + (samples - i) * miss) for i, way in enumerate(ways)) > risk:
            low = middle
        else:
            high = middle
    return high


class Resampled:
    """A cluster bootstrap: the same resampled pictures for every figure, so that differences are paired.

    Questions about one picture share its luck, so pictures are drawn, not questions (percentile intervals;
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). With fewer than `LEAST` pictures it is far too
    narrow, so resamples of what fewer count for are NaN, and intervals say nothing.

    Args:
        groups: (questions,) which picture each question is about; any hashable labels.
        seed: Of the resampling.

    Attributes:
        count: How many pictures there are.
    """

    def __init__(self, groups: Sequence[Any], seed: int = 0) -> None:
        labels, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self.count = len(labels)
        generator = np.random.default_rng(seed)
        drawn = (generator.integers(self.count, size=self.count) for _ in range(RESAMPLES))
        times = [np.bincount(pictures, minlength=self.count) for pictures in drawn]
        self._weights = np.array(times, dtype=np.float64)  # (resamples, pictures)

    def means(self, values: Numbers) -> Numbers:
        """The plain mean, then that of every resample.

        Shapes: (questions,), NaN where a question does not count -> (1 + resamples,).
        """
        sums, counts = self._by_picture(values)
        with np.errstate(invalid="ignore"):  # a resample without any question of a rare task has no mean
            drawn = (self._weights @ sums) / (self._weights @ counts)
        if np.count_nonzero(counts) < LEAST:
            drawn[:] = nan
        return np.append(sums.sum() / counts.sum(), drawn)

    def over(self, rows: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> Numbers:
        """A figure that is no mean: over all rows, one a question, then over those of each of a few resamples.

        Args:
            rows: (questions,) what the function takes.
            aggregate: Gives the figure of rows; one that is drawn again stands in them again.
        """
        figures = [aggregate(rows)]
        if self.count < LEAST:
            return np.array([*figures, nan], dtype=np.float64)
        for weights in self._weights[:FEWER]:
            times = weights[self._group].astype(int)
            figures.append(aggregate([row for row, count in zip(rows, times, strict=True) for _ in range(count)]))
        return np.array(figures, dtype=np.float64)

    def mean(self, values: Numbers) -> Estimate:
        """The mean of (questions,) values with its interval."""
        return estimate(self.means(values))

    def proportion(self, values: Numbers) -> Estimate:
        """The mean of (questions,) shares, such as 1 for right and 0 for wrong, with its interval.

        Where all pictures have the same share the resamples say nothing, and the interval is Wilson's over pictures:
        as if all questions about one picture were the same question.
        """
        sums, counts = self._by_picture(values)
        shares = sums[counts > 0] / counts[counts > 0]
        interval = self.mean(values)
        if np.ptp(shares) > ROUNDING:
            return interval
        return wilson(interval.value, len(shares))

    def _by_picture(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """Sum and number of the values of each picture that count."""
        counted = ~np.isnan(values)
        sums = np.bincount(self._group, np.where(counted, values, 0.0), self.count).astype(np.float64)
        return sums, np.bincount(self._group, counted, self.count).astype(np.float64)
