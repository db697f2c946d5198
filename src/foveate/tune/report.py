"""The comparison on pictures that nothing was searched or chosen with: rows of one cost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.contract.method import Method
from foveate.eval.stats import Estimate, Resampled, estimate
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.tune.choosing import Choice, root_of
from foveate.tune.costs import Prices
from foveate.tune.forcing import Outcome
from foveate.tune.race import Race
from foveate.tune.samples import About, by_picture
from foveate.tune.tuned import Row

__all__ = ["Report"]

DRAWS = 3
"""Random droppings that are averaged in the comparison."""
Column = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Settings on the pictures to report with.

    Attributes:
        race: Where settings are tried.
        prices: What they cost.
        pictures: Used for nothing else.
    """

    race: Race
    prices: Prices
    pictures: Sequence[About]

    def rows(self, published: Method | None, choice: Choice) -> list[Row]:
        """The published schedule, the best of the grid, the tuned one, and random at the schedules of both."""
        tuned = choice.method
        base = self.agrees(published)
        rows = []
        if published is not None:
            rows.append(self.row("published", [published], None))
            rows.append(self.row("random, published schedule", self._draws(published), base))
        rows.append(self.row("grid", [choice.grid], base))
        rows.append(self.row("tuned", [tuned], base))
        rows.append(self.row("random, tuned schedule", self._draws(tuned), base))
        rows.append(self.row("uniform, tuned schedule", [self._control(tuned, Uniform())], base))
        return rows

    def gain(self, tuned: Method, other: Method) -> Estimate:
        """How much more often the tuned setting gives the full model's answer than another, as a share."""
        resampled = Resampled([about.key for about in self.pictures for _ in about.samples])
        return estimate(resampled.means(self._column(tuned, _agrees) - self._column(other, _agrees)))

    def worse(self, published: Method, tuned: Method) -> int:
        """On how many of the pictures the tuned setting moves answers further than the published one."""
        difference = self._column(tuned, root_of) - self._column(published, root_of)
        return sum(of_picture.mean() > 0 for of_picture in by_picture(difference, self.pictures))

    def row(self, name: str, methods: Sequence[Method], published: Column | None) -> Row:
        """A setting, or the mean over several draws of one.

        Args:
            name: What the row is called.
            methods: The setting, or its draws.
            published: (questions,) 1 where the published setting agrees; None without one.
        """
        resampled = Resampled([about.key for about in self.pictures for _ in about.samples])
        agrees = np.mean([self._column(method, _agrees) for method in methods], axis=0)
        roots = np.mean([self._column(method, root_of) for method in methods], axis=0)
        ahead: Estimate | None = None
        if published is not None:
            ahead = estimate(resampled.means(agrees - published))
        return Row(
            name=name,
            method=methods[0],
            tokens=self.prices.tokens(methods[0]),
            agreement=resampled.proportion(agrees),
            root=resampled.mean(roots),
            ahead=ahead,
        )

    def agrees(self, method: Method | None) -> Column | None:
        """(questions,) 1 where a setting gives the full model's answer; None without a setting."""
        if method is None:
            return None
        return self._column(method, _agrees)

    def _column(self, method: Method, figure: Callable[[Outcome], float]) -> Column:
        return self.race.column(method, self.pictures, figure)

    def _draws(self, method: Method) -> list[Method]:
        return [self._control(method, Random(seed=seed)) for seed in range(DRAWS)]

    def _control(self, method: Method, control: Random | Uniform) -> Method:
        return same_schedule(self.prices.plan(method), self.prices.entered, control=control)


def _agrees(outcome: Outcome) -> float:
    return float(outcome.agrees)
