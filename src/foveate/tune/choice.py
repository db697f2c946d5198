"""What pictures say that nothing was searched with: some choose among the leaders, others are reported."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.contract.method import Method
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.plain.stats import Estimate, Resampled, estimate
from foveate.runs.listener import Advance, unheard
from foveate.tune.forcing import Fidelity
from foveate.tune.parts import About, Split, by_picture
from foveate.tune.prices import Prices
from foveate.tune.searching import Tried
from foveate.tune.trials import FEWEST, Trials, is_above_zero
from foveate.tune.tuned import HeldOut, points

FINALISTS = 3
"""More of them would be more luck with the pictures to choose with."""
DRAWS = 3
"""Random droppings that are averaged in the comparison."""


def runs_to_choose(parts: Split) -> int:
    """Pictures that are run to choose at most: leaders of the grid and of all, and the published setting."""
    return (2 * FINALISTS + 1) * len(parts.choose)


def runs_to_compare(parts: Split, *, has_published: bool) -> int:
    """Pictures that are run for the comparison at most."""
    settings = 3 + DRAWS
    if has_published:
        settings += 1 + DRAWS
    return settings * len(parts.report)


# -- choosing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Choice:
    """The setting to use.

    Attributes:
        method: It.
        origin: Where it comes from: "published", "grid" or "search".
        grid: The best of the small grid.
        published: The published setting at this budget; None where there is none.
    """

    method: Method
    origin: str
    grid: Method
    published: Method | None


def chosen(trials: Trials, tried: Sequence[Tried], published: Method | None, parts: Split) -> Choice:
    """The best of those that led the search, by more pictures; a simpler setting stays if it may be as good.

    Among leaders the lower mean over all pictures but those to report with decides: all of them led on those searched
    with. The best of a search is the best of many, so that its lead on the pictures searched with is partly luck: on
    the others it must be ahead of the best of the grid by a standard error, and what is left of the published setting.

    Args:
        trials: Where settings are tried.
        tried: All that were tried to the end, one at least.
        published: The published setting at this budget, if there is one.
        parts: The pictures.
    """
    leaders = sorted(tried, key=lambda one: one.score)
    of_the_grid = [one for one in leaders if one.origin == "grid"]
    seen = (*parts.search, *parts.choose)
    grid = _best_of(trials, of_the_grid or leaders[:1], seen)
    best, origin = _best_of(trials, leaders, seen), "search"
    if not _is_ahead(trials, best, grid, parts.choose):
        best, origin = grid, "grid"
    if published is not None and not _is_ahead(trials, best, published, parts.choose):
        best, origin = published, "published"
    return Choice(best, origin, grid, published)


def root_of(fidelity: Fidelity) -> float:
    """The root divergence of an answer."""
    return fidelity.root


def agrees(fidelity: Fidelity) -> float:
    """1 where an answer is the full model's, else 0."""
    return float(fidelity.agrees)


def _best_of(trials: Trials, leaders: Sequence[Tried], pictures: Sequence[About]) -> Method:
    methods = [one.method for one in leaders[:FINALISTS]]
    return min(methods, key=lambda method: float(trials.column(method, pictures, root_of).mean()))


def _is_ahead(trials: Trials, rival: Method, method: Method, pictures: Sequence[About]) -> bool:
    """Whether the mean difference in root divergence is more than a standard error below 0; of too few none is."""
    if rival == method or len(pictures) < FEWEST:
        return False
    ahead = trials.column(method, pictures, root_of) - trials.column(rival, pictures, root_of)
    return is_above_zero(np.array([of_picture.mean() for of_picture in by_picture(ahead, pictures)]), 1)


# -- reporting ------------------------------------------------------------------------------------------------------


def comparison(
    trials: Trials, prices: Prices, pictures: Sequence[About], choice: Choice, advance: Advance = unheard
) -> list[HeldOut]:
    """The published schedule, the best of the grid, the tuned one, and random and uniform at these schedules."""
    named: list[tuple[str, list[Method]]] = []
    if choice.published is not None:
        named.append(("published", [choice.published]))
        named.append(("random, published schedule", _draws(prices, choice.published)))
    named.append(("grid", [choice.grid]))
    named.append(("tuned", [choice.method]))
    named.append(("random, tuned schedule", _draws(prices, choice.method)))
    named.append(("uniform, tuned schedule", [_control(prices, choice.method, Uniform())]))
    resampled = Resampled([about.key for about in pictures for _ in about.samples])
    base = None
    if choice.published is not None:
        base = trials.column(choice.published, pictures, agrees)
    rows = []
    for name, methods in named:
        agreement = np.mean([trials.column(method, pictures, agrees) for method in methods], axis=0)
        roots = np.mean([trials.column(method, pictures, root_of) for method in methods], axis=0)
        ahead = None
        if base is not None and name != "published":
            ahead = estimate(resampled.means(agreement - base))
        row = HeldOut(
            name=name,
            method=methods[0],
            tokens=round(prices.tokens(methods[0]), 4),
            agreement=resampled.proportion(agreement).rounded(),
            root=resampled.mean(roots).rounded(),
            ahead=None if ahead is None else ahead.rounded(),
        )
        rows.append(row)
        advance(len(methods) * len(pictures))
    return rows


def remarks(trials: Trials, pictures: Sequence[About], choice: Choice) -> list[str]:
    """What searching brought, and on how many pictures the tuned setting is worse than the published one."""
    notes = []
    if choice.origin == "search":
        gain = points(lead(trials, pictures, choice.method, choice.grid), "+")
        notes.append(f"Searching brought {gain} points of agreement over the best of the small grid.")
    if choice.origin != "published" and choice.published is not None:
        behind = trials.column(choice.method, pictures, root_of) - trials.column(choice.published, pictures, root_of)
        worse = sum(of_picture.mean() > 0 for of_picture in by_picture(behind, pictures))
        notes.append(
            f"On {worse} of {len(pictures)} pictures its answers are further off than the published schedule's."
        )
    return notes


def lead(trials: Trials, pictures: Sequence[About], method: Method, rival: Method) -> Estimate:
    """The agreement of a method minus that of another one, paired: both answer the same questions."""
    ahead = trials.column(method, pictures, agrees) - trials.column(rival, pictures, agrees)
    resampled = Resampled([about.key for about in pictures for _ in about.samples])
    return estimate(resampled.means(ahead)).rounded()


def untuned(asked: str, rows: Sequence[HeldOut], origin: str, pictures: int) -> list[str]:
    """Whether the published schedule is as good as what tuning found, on the pictures to report with.

    Args:
        asked: The method and its budget: "v2drop untuned at 64 tokens".
        rows: The comparison.
        origin: Where the chosen setting comes from. Where that is the published schedule, the grid is its rival.
        pictures: How many pictures say so.
    """
    rival = "grid" if origin == "published" else "tuned"
    (ahead,) = (row.ahead for row in rows if row.name == rival)
    if ahead is None or ahead.low > 0:
        return []
    if ahead.high < 0:
        told = "better"
    else:
        told = f"as good here, as far as {pictures} pictures tell"
    what = "the tuned setting"
    if origin == "published":
        what = "the best of the grid"
    return [f"{asked} is {told}: {what} is {points(ahead, '+')} points of agreement ahead of it."]


def _draws(prices: Prices, method: Method) -> list[Method]:
    return [_control(prices, method, Random(seed=seed)) for seed in range(DRAWS)]


def _control(prices: Prices, method: Method, control: Random | Uniform) -> Method:
    return same_schedule(method, prices.plan(method), prices.entered, control)
