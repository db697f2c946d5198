"""The search: a small grid, random draws, then steps from the best. It asks a race for scores and knows no model."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from foveate.contract.method import Method
from foveate.contract.space import Point, Space

__all__ = ["Found", "Searched", "search"]

RANDOM = 40
LOCAL = 80
PARENTS = 6


@dataclass(frozen=True, slots=True)
class Found:
    """A setting that was tried to the end.

    Attributes:
        score: On the pictures of the search. It says which setting is ahead there, and nothing about other pictures.
        point: Its place in the space.
        method: Its setting, at the budget.
    """

    score: float
    point: Point
    method: Method


@dataclass(slots=True)
class Searched:
    """What a search came to.

    Attributes:
        grid: Settings of the small grid, best first.
        drawn: All others, best first.
        tried: Settings that were tried, those that stopped early among them.
        complete: Whether every step was made, not ended by the time.
    """

    grid: list[Found] = field(default_factory=list)
    drawn: list[Found] = field(default_factory=list)
    tried: int = 0
    complete: bool = True

    @property
    def best(self) -> list[Found]:
        """All settings, best first."""
        return sorted([*self.grid, *self.drawn], key=lambda found: found.score)


@dataclass(frozen=True, slots=True)
class Trial:
    """How a point is tried.

    Attributes:
        solve: A point's method at the budget, if there is one.
        score: A method's score; None where it stopped early.
        over: Whether time is up.
        advance: Called after every step.
    """

    solve: Callable[[Point], Method | None]
    score: Callable[[Method], float | None]
    over: Callable[[], bool]
    advance: Callable[[], object]


def search(
    space: Space, starts: list[Point], trial: Trial, seed: int, *, drawn: int = RANDOM, steps: int = LOCAL
) -> Searched:
    """Try a grid around the starts, then `drawn` random points, then `steps` changes of the best.

    Args:
        space: What may change.
        starts: Points to begin with; the grid moves their first cut and the first two settings.
        trial: How points are tried.
        seed: Of the draws. The same seed tries the same points, as long as scores are the same.
    """
    chance = random.Random(seed)
    searched = Searched()
    seen: set[Method] = set()
    for point in grid(space, starts):
        _try(point, trial, seen, searched, searched.grid)
    for _ in range(drawn):
        if not searched.complete:
            break
        _try(_new(partial(draw, space, chance), trial, seen), trial, seen, searched, searched.drawn)
    for _ in range(steps):
        parents = searched.best[:PARENTS]
        if not parents or not searched.complete:
            break
        parent = parents[min(int(chance.expovariate(0.5)), len(parents) - 1)]
        near = _new(partial(step, space, parent.point, chance), trial, seen)
        _try(near, trial, seen, searched, searched.drawn)
    searched.grid.sort(key=lambda found: found.score)
    searched.drawn.sort(key=lambda found: found.score)
    return searched


def _new(make: Callable[[], Point], trial: Trial, seen: set[Method]) -> Point | None:
    """A point whose setting exists and was not tried."""
    for _ in range(20):
        point = make()
        method = trial.solve(point)
        if method is not None and method not in seen:
            return point
    return None


def _try(point: Point | None, trial: Trial, seen: set[Method], searched: Searched, into: list[Found]) -> None:
    """Try a point, unless its setting was tried or time is up; the first one always, so that there is a best."""
    if searched.best and trial.over():
        searched.complete = False
        return
    trial.advance()
    method = None if point is None else trial.solve(point)
    if point is None or method is None or method in seen:
        return
    seen.add(method)
    searched.tried += 1
    score = trial.score(method)
    if score is not None:
        into.append(Found(score, point, method))


# -- points -------------------------------------------------------------------------------------------------------


def grid(space: Space, starts: list[Point]) -> list[Point]:
    """The starts, with each early first cut and each value of the first two settings."""
    points = []
    for start in starts:
        first_cuts = [start.layers[0], *space.first_cuts()] if start.layers else [None]
        for settings in space.grid_settings():
            for first in dict.fromkeys(first_cuts):
                layers = start.layers if first is None else _with_first(start.layers, first)
                if layers is not None:
                    points.append(replace(start, layers=layers, settings=settings))
    return points


def _with_first(layers: tuple[int, ...], first: int) -> tuple[int, ...] | None:
    """The cuts with another first one; None where it is not before the second."""
    if len(layers) > 1 and first >= layers[1]:
        return None
    return (first, *layers[1:])


def draw(space: Space, chance: random.Random) -> Point:
    """A random point: early cuts are likelier, since a layer at full count is dear."""
    settings = tuple((name, chance.choice(values)) for name, values in space.settings.items())
    if not space.most_cuts:
        return Point((), (1.0,), settings)
    start = max(1, space.first)
    if space.fixed:
        return Point(space.fixed, _falling(len(space.fixed) + space.counts_entry, chance), settings)
    count = min(chance.randint(1, space.most_cuts), space.depth - start)
    layers = {min(space.depth - 1, start + int(chance.expovariate(0.6)))}
    while len(layers) < count:
        layers.add(chance.randint(start, space.depth - 1))
    return Point(tuple(sorted(layers)), _falling(len(layers) + space.counts_entry, chance), settings)


def _falling(count: int, chance: random.Random) -> tuple[float, ...]:
    """1, then shares that fall by 5 to 100 % each."""
    shape = [1.0]
    while len(shape) < count:
        shape.append(shape[-1] * math.exp(chance.uniform(math.log(0.05), 0)))
    return tuple(shape)


def step(space: Space, point: Point, chance: random.Random) -> Point:
    """A point near another: a cut moved, added or left out, a share scaled, or a setting changed."""
    ways: list[Callable[[Space, Point, random.Random], Point]] = []
    if space.fixed:
        ways += [_scaled, _scaled]
    elif space.most_cuts:
        ways += [_moved, _moved, _scaled, _scaled, _with_a_cut, _without_a_cut]
    if space.settings:
        ways += [_reset]
    changed = point
    for _ in range(chance.choice((1, 1, 2))):
        if ways:
            changed = chance.choice(ways)(space, changed, chance)
    return changed


def _moved(space: Space, point: Point, chance: random.Random) -> Point:
    """A cut one to three layers earlier or later, or where it is if another stands there."""
    if not point.layers:
        return point
    place = chance.randrange(len(point.layers))
    layer = point.layers[place] + chance.choice((-3, -2, -1, 1, 2, 3))
    low = max(1, space.first) if place == 0 else point.layers[place - 1] + 1
    high = space.depth - 1 if place + 1 == len(point.layers) else point.layers[place + 1] - 1
    layer = min(max(layer, low), high)
    return replace(point, layers=(*point.layers[:place], layer, *point.layers[place + 1 :]))


def _scaled(space: Space, point: Point, chance: random.Random) -> Point:
    """The shares from one cut on scaled; none above the one before."""
    if len(point.shape) < 2:
        return point
    place = chance.randrange(1, len(point.shape))
    factor = math.exp(chance.gauss(0, 0.5))
    factor = min(factor, point.shape[place - 1] / point.shape[place])
    shape = (*point.shape[:place], *(share * factor for share in point.shape[place:]))
    return replace(point, shape=shape)


def _with_a_cut(space: Space, point: Point, chance: random.Random) -> Point:
    """One cut more, its share between its neighbours'; as often right beside a cut as anywhere."""
    free = [layer for layer in range(max(1, space.first), space.depth) if layer not in point.layers]
    if len(point.layers) >= space.most_cuts or not free:
        return point
    beside = [layer for layer in free if layer - 1 in point.layers or layer + 1 in point.layers]
    layer = chance.choice(beside if beside and chance.random() < 0.5 else free)
    place = sum(other < layer for other in point.layers)
    index = place + space.counts_entry
    above = 1.0 if index == 0 else point.shape[index - 1]
    below = point.shape[index] if index < len(point.shape) else 0.3 * above
    if index == 0:  # a new first cut leaves more than the old one
        above = point.shape[0] * math.exp(chance.uniform(0, 1))
    shape = [*point.shape[:index], math.sqrt(above * below), *point.shape[index:]]
    layers = (*point.layers[:place], layer, *point.layers[place:])
    return replace(point, layers=layers, shape=tuple(share / shape[0] for share in shape))


def _without_a_cut(space: Space, point: Point, chance: random.Random) -> Point:
    """One cut less; one is left."""
    if len(point.layers) < 2:
        return point
    place = chance.randrange(len(point.layers))
    index = place + space.counts_entry
    shape = (*point.shape[:index], *point.shape[index + 1 :])
    layers = (*point.layers[:place], *point.layers[place + 1 :])
    return replace(point, layers=layers, shape=tuple(share / shape[0] for share in shape))


def _reset(space: Space, point: Point, chance: random.Random) -> Point:
    """Another value of one setting."""
    name = chance.choice(list(space.settings))
    values: dict[str, Any] = {**point.values, name: chance.choice(space.settings[name])}
    return replace(point, settings=tuple(values.items()))
