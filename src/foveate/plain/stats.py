"""Confidence intervals of paired figures, over timed rounds or over pictures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import cache
from math import exp, fsum, isnan, lgamma, log, log1p, nan, sqrt
from statistics import NormalDist
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from foveate.errors import SettingError

Z = NormalDist().inv_cdf(0.975)  # z = 1.96, for 95 % intervals
RESAMPLES = 2000
FEWER = 200
"""Resamples for a figure that is not a mean, because its function must run on each resample."""
LEAST = 5
"""Fewest pictures for a cluster bootstrap. With fewer, its intervals are far too narrow, so both ends are NaN."""
RISK = 0.1
"""δ: the probability that a calibrated threshold does not keep its promise."""
ROUNDING = 1e-12
"""Shares that differ by less are equal up to rounding errors."""

Numbers = NDArray[np.float64]
End = Annotated[float, BeforeValidator(lambda end: nan if end is None else end)]
"""An end of an interval. NaN if there is no interval; null in JSON, which has no NaN."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval. Both ends are NaN if there are too few pictures for an interval."""

    value: float
    low: End
    high: End

    def __round__(self, decimals: int) -> "Estimate":
        """Return the figure and its ends rounded, with 0.0 for -0.0. Equal estimates stay equal if ends are NaN."""
        # nan is one object, and tuples compare objects before values
        return Estimate(*(nan if isnan(end) else round(end, decimals) + 0.0 for end in astuple(self)))

    def to_dict(self) -> dict[str, float | None]:
        """Return plain values, rounded to 5 decimals, with 0.0 for -0.0 and None for NaN."""
        return {name: None if isnan(end) else end for name, end in asdict(round(self, 5)).items()}


UNKNOWN = Estimate(nan, nan, nan)


def estimate(figures: Numbers) -> Estimate:
    """Return a figure and its percentile interval.

    Args:
        figures: (1 + resamples,), the figure itself, then its value in every resample. NaN marks a resample without a
            value.
    """
    if np.isnan(figures[1:]).all():
        return Estimate(float(figures[0]), nan, nan)
    low, high = np.nanquantile(figures[1:], [0.025, 0.975])
    return Estimate(float(figures[0]), float(low), float(high))


def median_of(values: Sequence[float], seed: int = 0) -> Estimate:
    """Return the median of independent values with its percentile bootstrap interval.

    Args:
        values: One or more values.
        seed: The seed of the resampling.
    """
    array = np.asarray(values)
    # (resamples, values): each row draws as many indices as there are values, with replacement.
    draws = np.random.default_rng(seed).integers(0, len(array), (RESAMPLES, len(array)))
    return estimate(np.append(np.median(array), np.median(array[draws], axis=1)))


def share(figures: Numbers, whole: Numbers) -> Estimate:
    """Divide one figure by another, resample by resample; `UNKNOWN` if the other is zero in any resample.

    Shapes: two (1 + resamples,) arrays from the same resamples.
    """
    if (whole == 0).any():
        return UNKNOWN
    return estimate(figures / whole)


def wilson(hits: float, count: float) -> Estimate:
    """Return a share with its Wilson score interval, which has a width above zero at the shares 0 and 1 too.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), from Wilson, "Probable inference, the law of succession, and
    statistical inference", JASA 22, 1927; recommended for small counts by Brown, Cai and DasGupta, "Interval estimation
    for a binomial proportion", Statistical Science 16, 2001. If all n trials are hits, from n / (n + z²) to 1.

    Args:
        hits: The share p of hits, in [0, 1].
        count: The number n of independent trials.
    """
    per_trial = Z * Z / count
    middle = hits + per_trial / 2
    half = sqrt(per_trial * (hits * (1 - hits) + per_trial / 4))
    low, high = (middle - half) / (1 + per_trial), (middle + half) / (1 + per_trial)
    return Estimate(hits, max(0.0, min(low, hits)), min(1.0, max(high, hits)))


@cache
def bound(wrong: int, samples: int, risk: float) -> float:
    """Return the upper confidence bound U(k, n) of a share, after k of n samples, by Clopper and Pearson (1934).

    The true share is below it with probability 1 − δ. U is the p at which k or fewer of n have probability δ, which is
    the 1 − δ quantile of Beta(k + 1, n − k); 1 if k = n. Rounded up to the next float.

    Args:
        wrong: The number k.
        samples: The number n.
        risk: The probability δ.

    Raises:
        SettingError: If `wrong` or `risk` is out of range.
    """
    if not 0 <= wrong <= samples or not 0 < risk < 1:
        raise SettingError(
            f"wrong must be from 0 to samples, and risk between 0 and 1; got {wrong} of {samples} and {risk}."
        )
    if wrong == samples:
        return 1.0
    # log C(n, i) for i = 0 … k
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
    """A cluster bootstrap over pictures. Every figure uses the same resamples, so that differences are paired.

    Questions about one picture are not independent, so pictures are drawn, not questions (percentile intervals;
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). With fewer than `LEAST` pictures, intervals
    would be far too narrow, so all resamples are NaN.

    Args:
        groups: (questions,), the picture of each question, as any hashable labels.
        seed: The seed of the resampling.

    Attributes:
        count: The number of pictures.
    """

    def __init__(self, groups: Sequence[Any], seed: int = 0) -> None:
        labels, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self.count = len(labels)
        generator = np.random.default_rng(seed)
        drawn = (generator.integers(self.count, size=self.count) for _ in range(RESAMPLES))
        times = [np.bincount(pictures, minlength=self.count) for pictures in drawn]
        # (resamples, pictures): how often each resample drew each picture. Draws 2, 0, 2 of 3 pictures give [1, 0, 2].
        self._weights = np.array(times, dtype=np.float64)

    def means(self, values: Numbers) -> Numbers:
        """Return the mean, then the mean of every resample.

        Shapes: (questions,), with NaN for questions that do not count -> (1 + resamples,).
        """
        sums, counts = self._by_picture(values)
        with np.errstate(invalid="ignore"):  # a resample may draw no question of a rare task: 0 / 0
            # (resamples, pictures) @ (pictures,) -> (resamples,)
            drawn = (self._weights @ sums) / (self._weights @ counts)
        if np.count_nonzero(counts) < LEAST:
            drawn[:] = nan
        return np.append(sums.sum() / counts.sum(), drawn)

    def over(self, rows: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> Numbers:
        """Return a figure that is not a mean: over all rows, then over the rows of each of `FEWER` resamples.

        Args:
            rows: (questions,), the arguments of the function, one per question.
            aggregate: Computes the figure from rows. A row that is drawn twice appears twice.

        Returns:
            (1 + `FEWER`,); only a NaN after the figure if there are fewer than `LEAST` pictures.
        """
        figures = [aggregate(rows)]
        if self.count < LEAST:
            return np.array([*figures, nan], dtype=np.float64)
        for weights in self._weights[:FEWER]:
            times = weights[self._group].astype(int)
            figures.append(aggregate([row for row, count in zip(rows, times, strict=True) for _ in range(count)]))
        return np.array(figures, dtype=np.float64)

    def mean(self, values: Numbers) -> Estimate:
        """Return the mean of (questions,) values with its interval."""
        return estimate(self.means(values))

    def proportion(self, values: Numbers) -> Estimate:
        """Return the mean of (questions,) shares, such as 1 for right and 0 for wrong, with its interval.

        If all pictures have the same share, all resamples are equal. The interval is then Wilson's over pictures, as
        if all questions about one picture were one question.
        """
        sums, counts = self._by_picture(values)
        shares = sums[counts > 0] / counts[counts > 0]
        interval = self.mean(values)
        if np.ptp(shares) > ROUNDING:
            return interval
        return wilson(interval.value, len(shares))

    def _by_picture(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """Return the sum and the number of the values that are not NaN, per picture: two (pictures,) arrays."""
        counted = ~np.isnan(values)
        sums = np.bincount(self._group, np.where(counted, values, 0.0), self.count).astype(np.float64)
        return sums, np.bincount(self._group, counted, self.count).astype(np.float64)
