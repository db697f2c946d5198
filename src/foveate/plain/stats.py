"""Intervals of paired figures: over rounds; over pictures, with all their questions and all methods; over seeds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z = NormalDist().inv_cdf(0.975)  # 1.96: of 95 %
RESAMPLES = 2000
FEWER = 200
"""Resamples of a figure that is no mean, so that its own function runs on each."""
NO_VARIANCE = 1e-15
"""Variances below it are rounding errors of 0."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def rounded(self) -> "Estimate":
        """This estimate to a hundred thousandth, and no zero negative."""
        return Estimate(*(round(number, 5) + 0.0 for number in (self.value, self.low, self.high)))

    def to_dict(self) -> dict[str, float]:
        """Plain values, rounded."""
        return asdict(self.rounded())


def estimate(figures: Numbers, widening: float = 1.0) -> Estimate:
    """A figure and its interval.

    Args:
        figures: (1 + resamples,): the figure itself, then that of every resample; NaN where a resample has none.
        widening: What the interval over pictures is multiplied by, for what seeds add.
    """
    low, high = np.nanquantile(figures[1:], [0.025, 0.975])
    value = float(figures[0])
    return Estimate(value, value + widening * (float(low) - value), value + widening * (float(high) - value))


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


def share(figures: Numbers, whole: Numbers, widening: float = 1.0) -> Estimate | None:
    """One figure as a share of another, resample by resample; None where the other is zero in any of them.

    Shapes: two (1 + resamples,) arrays from the same resamples.
    """
    if (whole == 0).any():
        return None
    return estimate(figures / whole, widening)


def wilson(hits: float, count: float, quantile: float = Z) -> Estimate:
    """A share with its Wilson score interval, which has a width at 0 and at 1 too.

    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n), from Wilson, "Probable inference, the law of succession, and
    statistical inference", JASA 22, 1927; recommended for small counts by Brown, Cai and DasGupta, "Interval estimation
    for a binomial proportion", Statistical Science 16, 2001. All of n right: from n / (n + z²) to 1.

    Args:
        hits: The share p, in [0, 1].
        count: How many independent trials n.
        quantile: z.
    """
    per_trial = quantile * quantile / count
    middle = hits + per_trial / 2
    half = sqrt(per_trial * (hits * (1 - hits) + per_trial / 4))
    low, high = (middle - half) / (1 + per_trial), (middle + half) / (1 + per_trial)
    return Estimate(hits, max(0.0, min(low, hits)), min(1.0, max(high, hits)))


@dataclass(frozen=True, slots=True)
class Spread:
    """The variance of a mean.

    Attributes:
        pictures: Its part over pictures, as if one seed had drawn them all.
        seeds: What seeds add: how much more their means differ than pictures explain; 0 with one seed.
        freedom: Degrees of freedom.
    """

    pictures: float
    seeds: float
    freedom: float

    @property
    def half(self) -> float:
        """Half the width of a 95 % interval, by Student's t."""
        return students(self.freedom) * sqrt(self.pictures + self.seeds)

    @property
    def widening(self) -> float:
        """What an interval over pictures alone is to be multiplied by; 1 where seeds add nothing."""
        if self.seeds == 0:
            return 1.0
        return self.half / (Z * sqrt(self.pictures))


def spread(sums: NDArray[np.float64], counts: NDArray[np.float64], seeds: NDArray[np.int64]) -> Spread | None:
    """The variance of the mean of all questions, from pictures nested in seeds.

    With m the mean, n_i the questions of a picture and e_i = sum_i − m n_i, N² times the variance is the sum of e_i²
    around each seed's own mean. The same from the seeds' totals has that expectation too if a seed is nothing but a
    block of pictures; what it is more is the seeds' own variance, never below 0 (one-way analysis of variance; Searle,
    Casella and McCulloch, Variance Components, 1992, ch. 3). Degrees of freedom: Satterthwaite, Biometrics 2, 1946.

    Shapes: (pictures,) each; `seeds` counts from 0.

    Returns:
        None where there are too few pictures to tell.
    """
    asked = counts > 0
    sums, counts, seeds = sums[asked], counts[asked], seeds[asked]
    pictures, total = len(sums), counts.sum()
    if pictures < 2:
        return None
    residuals = sums - sums.sum() / total * counts
    sizes = np.bincount(seeds)
    sizes, totals = sizes[sizes > 0], np.bincount(seeds, residuals)[sizes > 0]
    number = len(sizes)
    if number == 1 or pictures == number:
        return Spread(float((residuals**2).sum() * pictures / (pictures - 1) / total**2), 0.0, pictures - 1)
    around = (residuals**2).sum() - (totals**2 / sizes).sum()
    within = float(around * pictures / (pictures - number) / total**2)
    between = float((totals**2).sum() * number / (number - 1) / total**2)
    added = max(0.0, between - within)
    if within == added == 0:
        return Spread(0.0, 0.0, pictures - number)
    freedom = (within + added) ** 2 / (within**2 / (pictures - number) + added**2 / (number - 1))
    return Spread(within, added, freedom)


def students(freedom: float) -> float:
    """The 97.5 % quantile of Student's t, to 1 % from 3 degrees of freedom on and 3 % at 2.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 1964, 26.7.5.
    """
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


class Resampled:
    """A cluster bootstrap: the same resampled pictures for every figure, so that differences are paired.

    Questions about one picture share its luck, so pictures are drawn, not questions (percentile intervals;
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13). Seeds are too few to be drawn: three of them
    drawn again differ by a third less than three new ones. What they add comes from `spread`.

    Args:
        groups: (questions,) which picture each question is about; any hashable labels.
        seeds: (questions,) which seed drew that picture; None if one drew all.
        seed: Of the resampling.

    Attributes:
        count: How many pictures there are.
    """

    def __init__(self, groups: Sequence[Any], seeds: Sequence[int] | None = None, seed: int = 0) -> None:
        labels, first, self._group = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        self.count = len(labels)
        self._seed = np.zeros(self.count, dtype=np.int64)  # of each picture
        if seeds is not None:
            self._seed = np.unique(np.asarray(seeds), return_inverse=True)[1][first]
        chances = np.full(self.count, 1 / max(1, self.count))
        draws = np.random.default_rng(seed).multinomial(self.count, chances, RESAMPLES)
        self._weights = draws.astype(np.float64)  # (resamples, pictures)

    def means(self, values: Numbers) -> Numbers:
        """The plain mean, then that of every resample.

        Shapes: (questions,), NaN where a question does not count -> (1 + resamples,).
        """
        sums, counts = self._by_picture(values)
        with np.errstate(invalid="ignore"):  # a resample without any question of a rare task has no mean
            drawn = (self._weights @ sums) / (self._weights @ counts)
        means: Numbers = np.append(sums.sum() / counts.sum(), drawn)
        return means

    def over(self, rows: Sequence[Any], aggregate: Callable[[Sequence[Any]], float]) -> Numbers:
        """A figure that is no mean: over all rows, one a question, then over those of each of a few resamples.

        Args:
            rows: (questions,) what the function takes.
            aggregate: Gives the figure of rows; one that is drawn again stands in them again.
        """
        figures = [aggregate(rows)]
        for weights in self._weights[:FEWER]:
            times = weights[self._group].astype(int)
            figures.append(aggregate([row for row, count in zip(rows, times, strict=True) for _ in range(count)]))
        return np.array(figures, dtype=np.float64)

    def mean(self, values: Numbers) -> Estimate:
        """The mean of (questions,) values with its interval."""
        return estimate(self.means(values), self.widening(values))

    def widening(self, values: Numbers) -> float:
        """What an interval of the mean of (questions,) values is multiplied by for what seeds add; 1 with one seed."""
        found = self._spread(values)
        if found is None or found.pictures == 0:
            return 1.0
        return found.widening

    def proportion(self, values: Numbers) -> Estimate:
        """The mean of (questions,) shares, such as 1 for right and 0 for wrong, with its interval.

        Wilson's, which is asymmetric near 0 and near 1 and has a width there. For n stands how many independent
        questions would have this variance (Dean and Pagano, Journal of Survey Statistics and Methodology 3, 2015).
        Where all pictures have the same share there is no variance, and n is the number of pictures: as if all
        questions about one picture were the same question.
        """
        sums, counts = self._by_picture(values)
        hits = float(sums.sum() / counts.sum())
        found = self._spread(values)
        if found is None or found.pictures + found.seeds < NO_VARIANCE:
            return wilson(hits, max(1, int((counts > 0).sum())))
        count = hits * (1 - hits) / (found.pictures + found.seeds)
        return wilson(hits, count, students(found.freedom))

    def _spread(self, values: Numbers) -> Spread | None:
        return spread(*self._by_picture(values), self._seed)

    def _by_picture(self, values: Numbers) -> tuple[Numbers, Numbers]:
        """Sum and number of the values of each picture that count."""
        counted = ~np.isnan(values)
        sums = np.bincount(self._group, np.where(counted, values, 0.0), self.count).astype(np.float64)
        return sums, np.bincount(self._group, counted, self.count).astype(np.float64)
