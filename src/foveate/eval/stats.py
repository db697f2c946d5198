"""Intervals of paired figures: pictures are drawn again, with all their questions and all methods at once."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "Resampled"]

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


class Resampled:
    """A cluster bootstrap: the same resampled pictures for every figure, so that differences are paired.

    Questions about one picture share its luck, so pictures are drawn, not questions (percentile intervals;
    Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Args:
        groups: (questions,) which picture each question is about; any hashable labels.
        seed: Of the resampling.
    """

    def __init__(self, groups: Any, seed: int = 0) -> None:
        names, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self._count = len(names)
        draws = np.random.default_rng(seed).multinomial(
            self._count, np.full(self._count, 1 / max(1, self._count)), RESAMPLES
        )
        self._weights = draws.astype(np.float64)  # (resamples, pictures)

    def mean(self, values: Numbers) -> Estimate:
        """Of (questions,) values, NaN where a question does not count."""
        return self._estimate(self._means(values))

    def difference(self, values: Numbers, others: Numbers) -> Estimate:
        """Mean of `values` minus mean of `others`, on the same draws."""
        return self._estimate(self._means(values) - self._means(others))

    def share(self, values: Numbers, whole: Numbers) -> Estimate | None:
        """Mean of `values` over mean of `whole`; None where that is zero, in the sample or in a draw."""
        means, wholes = self._means(values), self._means(whole)
        return None if (wholes == 0).any() else self._estimate(means / wholes)

    def _means(self, values: Numbers) -> Numbers:
        """The plain mean first, then that of every resample; (1 + resamples,)."""
        there = ~np.isnan(values)
        sums = np.bincount(self._group, np.where(there, values, 0.0), self._count)
        counts = np.bincount(self._group, there, self._count)
        with np.errstate(invalid="ignore"):  # a resample without any question of a rare task has no mean
            drawn = (self._weights @ sums) / (self._weights @ counts)
        found: Numbers = np.append(sums.sum() / counts.sum(), drawn)
        return found

    @staticmethod
    def _estimate(found: Numbers) -> Estimate:
        low, high = np.nanquantile(found[1:], [0.025, 0.975])
        return Estimate(float(found[0]), float(low), float(high))
