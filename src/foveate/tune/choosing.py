"""Choosing among the leaders of a search, by its pictures and others that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.contract.method import Method
from foveate.tune.forcing import Outcome
from foveate.tune.race import Race, is_above_zero
from foveate.tune.samples import About, Split, by_picture
from foveate.tune.search import Found, Searched

__all__ = ["FEWEST", "Choice", "chosen", "root_of"]

FINALISTS = 3
"""More of them would be more luck with the pictures to choose with."""
FEWEST = 5
"""Pictures to choose with that a comparison needs: a standard error of fewer says little."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting to use.

    Attributes:
        method: It.
        origin: Where it comes from: "published", "grid" or "search".
        grid: The best of the small grid.
    """

    method: Method
    origin: str
    grid: Method


def chosen(race: Race, searched: Searched, published: Method | None, parts: Split) -> Choice:
    """The best of those that led the search, by more pictures; a simpler setting stays if it may be as good.

    Among leaders the lower mean over all pictures but those to report with decides: all of them led on those searched
    with. The best of a search is the best of many, so that its lead on the pictures searched with is partly luck: on
    the others it must be ahead of the best of the grid by a standard error, and what is left of the published setting.
    """
    seen = (*parts.search, *parts.choose)
    grid = _best_of(race, searched.grid or searched.best[:1], seen)
    best, origin = _best_of(race, searched.best, seen), "search"
    if not _is_ahead(race, best, grid, parts.choose):
        best, origin = grid, "grid"
    if published is not None and not _is_ahead(race, best, published, parts.choose):
        best, origin = published, "published"
    return Choice(best, origin, grid)


def root_of(outcome: Outcome) -> float:
    """The root divergence of an answer."""
    return outcome.root


def _best_of(race: Race, found: Sequence[Found], pictures: Sequence[About]) -> Method:
    methods = [one.method for one in found[:FINALISTS]]
    return min(methods, key=lambda method: _mean_root(race, method, pictures))


def _mean_root(race: Race, method: Method, pictures: Sequence[About]) -> float:
    return float(race.column(method, pictures, root_of).mean())


def _is_ahead(race: Race, rival: Method, method: Method, pictures: Sequence[About]) -> bool:
    """Whether the mean difference in root divergence is more than a standard error below 0; of too few none is."""
    if rival == method or len(pictures) < FEWEST:
        return False
    ahead = race.column(method, pictures, root_of) - race.column(rival, pictures, root_of)
    return is_above_zero(np.array([of_picture.mean() for of_picture in by_picture(ahead, pictures)]), 1)
