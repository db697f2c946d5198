"""How far a mean of questions may lie from the truth: over pictures, and over the seeds that drew them."""

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["Spread", "Z", "spread", "students"]

Z = NormalDist().inv_cdf(0.975)  # 1.96: of 95 %


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
