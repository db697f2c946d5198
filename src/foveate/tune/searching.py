"""Settings to try: a small grid around the published schedule, then, for who asks, what optuna suggests."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foveate.contract.follow import cut_layers
from foveate.contract.method import Chain, Method
from foveate.contract.space import Point, Space
from foveate.contract.stages import Shape
from foveate.errors import BudgetError, SettingError, UnsupportedError
from foveate.plain.upstream import install_line
from foveate.tune.prices import Limit, Prices

LISTS = ("layers", "layer_list", "pruning_layers")
"""Settings that list the layers which are cut."""
LEAST_SHARE = 0.05
"""Of what arrives at a cut, the least that a suggested one leaves."""
DRAWN = 10
"""Suggestions at random, before those that follow what was tried."""
AGAIN = 100
"""Suggestions for one setting that exists and was not tried; behind so many the space is used up."""


# -- where a search begins ------------------------------------------------------------------------------------------


def left_to_search(space: Space, method: Method, given: Collection[str]) -> Space:
    """The space of a method without the settings that its user has given; of a chain, such as "1.metric"."""
    own, place = _spending(method, space), "" if space.member is None else f"{space.member}."
    fixed = [getattr(own, name) for name in LISTS if place + name in given and space.most_cuts]
    return space.without(given, *fixed)


def published_point(method: Method, space: Space, prices: Prices, limit: Limit) -> Point | None:
    """The schedule that the method has by itself at this budget; None where it cannot go so low."""
    if space.solved_for == "threshold":
        return Point((), (1.0,), space.usual)
    share = limit.value
    if limit.kind == "tokens":
        share /= prices.entered
    return _point_at(method, space, prices, share)


def usual_point(method: Method, space: Space, prices: Prices) -> Point:
    """The method's own schedule at the nearest budget that it can meet: its layers and shape are scaled down.

    Of a chain, that of the member that spends the budget, as if the others left it every token.
    """
    own = _spending(method, space)
    for share in (0.12, 0.2, 1 / 3, 0.5, 0.7):
        point = _point_at(own, space, prices, share)
        if point is not None:
            return point
    point = space.point_of(prices.plan(own), prices.entered, space.usual)
    if point is None:
        raise SettingError(f"{own.name} keeps every token by its own settings: there is no schedule to begin with.")
    return point


def _point_at(method: Method, space: Space, prices: Prices, share: float) -> Point | None:
    try:
        spending = budgeted(method, share)
        plan = prices.plan(spending)
    except SettingError:
        return None
    cuts = cut_layers(_spending(spending, space).stages(Shape(prices.depth)))
    return space.point_of(plan, prices.entered, space.usual, cuts)


def _spending(method: Method, space: Space) -> Method:
    """The method, or the member of a chain, whose cuts the space has."""
    if space.member is None or not isinstance(method, Chain):
        return method
    member: Method = method.members[space.member]
    return member


def budgeted(method: Method, share: float) -> Method:
    """The method with a mean share; one that was given a schedule keeps it."""
    try:
        return method.with_budget(retention=share)
    except BudgetError:
        raise
    except SettingError:
        return method


def grid(space: Space, start: Point) -> list[Point]:
    """The start, with each early first cut and each value of the first two settings."""
    layerings = [start.layers]
    for first in space.first_cuts():
        if start.layers and (len(start.layers) == 1 or first < start.layers[1]):
            layerings.append((first, *start.layers[1:]))
    points = []
    for settings in space.grid_settings():
        points += [replace(start, layers=layers, settings=settings) for layers in dict.fromkeys(layerings)]
    return points


def settings_of(points: Sequence[Point], solve: Callable[[Point], Method | None]) -> dict[Method, Point]:
    """The settings of points at the budget, each once, with the first point that it is of."""
    settings: dict[Method, Point] = {}
    for point in points:
        method = solve(point)
        if method is not None:
            settings.setdefault(method, point)
    return settings


# -- trying ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting that was tried.

    Attributes:
        score: On the pictures of the search. It says which setting is ahead there, and nothing about other pictures.
        whole: Whether it was tried to the end.
        point: Its place in the space.
        method: Its setting, at the budget.
        origin: "grid" or "search".
    """

    score: float
    whole: bool
    point: Point
    method: Method
    origin: str


def searched(
    space: Space,
    of_the_grid: Mapping[Method, Point],
    solve: Callable[[Point], Method | None],
    score: Callable[[Method], tuple[float, bool]],
    number: int,
    seed: int,
) -> Iterator[Tried]:
    """Try the grid, then so many points that optuna suggests, as long as somebody asks for more.

    Args:
        space: What may change.
        of_the_grid: The settings of the grid, with their points.
        solve: A point's method at the budget, if there is one.
        score: A method's score, and whether it was tried to the end.
        number: How many settings are searched beyond the grid.
        seed: Of what is suggested. The same seed, told the same scores, suggests the same points.

    Raises:
        UnsupportedError: If more than the grid is asked for, and optuna is not installed.
    """
    known: dict[Method, Tried] = {}
    suggestions = None
    if number:
        suggestions = Suggestions(space, seed, len(of_the_grid) + DRAWN)
    for method, point in of_the_grid.items():
        known[method] = Tried(*score(method), point, method, "grid")
        yield known[method]
    if suggestions is None:
        return
    for one in known.values():
        suggestions.add(one)
    for _ in range(number):
        found = _new(suggestions, solve, known)
        if found is None:
            return
        trial, point, method = found
        known[method] = Tried(*score(method), point, method, "search")
        suggestions.tell(trial, known[method])
        yield known[method]


def _new(
    suggestions: "Suggestions", solve: Callable[[Point], Method | None], known: dict[Method, Tried]
) -> tuple[Any, Point, Method] | None:
    """The next point whose setting exists and was not tried, with its trial."""
    for _ in range(AGAIN):
        trial, point = suggestions.ask()
        method = solve(point)
        if method is not None and method not in known:
            return trial, point, method
        suggestions.tell(trial, None if method is None else known[method])
    return None


class Suggestions:
    """Points that optuna suggests (TPE: Watanabe, arXiv:2304.11127), of all cuts and settings at once.

    A trial has the same parameters however many cuts it takes: the layer of the first, how many more, and for each that
    there may be its distance from the one before and the share that it leaves. Both are on a logarithmic scale: early
    cuts, and cuts right behind one another, are suggested as often as late and distant ones.

    Args:
        space: What may change.
        seed: Of the draws.
        startup: Trials behind which suggestions follow what was tried; those before are drawn.

    Raises:
        UnsupportedError: If optuna is not installed.
    """

    def __init__(self, space: Space, seed: int, startup: int = DRAWN) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UnsupportedError(
                f"A search needs optuna: {install_line('tune')}. Without a search the small grid is tried."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._failed = optuna.trial.TrialState.FAIL
        self._space = space
        self._widest = max(1, space.depth // 2)  # between two cuts
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=startup, n_ei_candidates=64)
        self._study = optuna.create_study(sampler=sampler)

    def add(self, tried: Tried) -> None:
        """Tell of a point that was tried without being suggested; what leaves the ranges is told as their ends."""
        self._study.enqueue_trial(self._parameters(tried.point))
        self.tell(self.ask()[0], tried)

    def ask(self) -> tuple[Any, Point]:
        """The next trial, and its point."""
        trial = self._study.ask()
        return trial, self._point(trial)

    def tell(self, trial: Any, tried: Tried | None) -> None:
        """What a trial came to; None where its point has no setting."""
        if tried is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, tried.score)

    def _point(self, trial: Any) -> Point:
        space = self._space
        settings = tuple((name, values[self._place(trial, name, values)]) for name, values in space.settings.items())
        if not space.most_cuts:
            return Point((), (1.0,), settings)
        layers = space.fixed or self._layers(trial)
        shape = [1.0]
        for place in range(1, (len(space.fixed) or space.most_cuts) + space.counts_entry):
            share = trial.suggest_float(f"share {place}", LEAST_SHARE, 1, log=True)
            if place < len(layers) + space.counts_entry:
                shape.append(shape[-1] * share)
        return Point(layers, tuple(shape), settings)

    @staticmethod
    def _place(trial: Any, name: str, values: Sequence[Any]) -> int:
        """The place of a setting's value: optuna takes no values but numbers and texts."""
        place: int = trial.suggest_categorical(name, list(range(len(values))))
        return place

    def _layers(self, trial: Any) -> tuple[int, ...]:
        """As many cuts as the trial has, but for those that would lie behind the last layer."""
        space = self._space
        layers = [trial.suggest_int("first", max(1, space.first), space.depth - 1, log=True)]
        cuts = trial.suggest_int("cuts", 1, space.most_cuts)
        for place in range(1, space.most_cuts):
            layer = layers[-1] + trial.suggest_int(f"gap {place}", 1, self._widest, log=True)
            if place < cuts and layer < space.depth:
                layers.append(layer)
        return tuple(layers)

    def _parameters(self, point: Point) -> dict[str, float]:
        """The parameters of a trial that has this point; those that it does not need are left to chance."""
        values: dict[str, float] = {name: self._space.settings[name].index(value) for name, value in point.settings}
        if point.layers and not self._space.fixed:
            values |= {"first": max(1, point.layers[0]), "cuts": len(point.layers)}
            for place, (before, layer) in enumerate(zip(point.layers, point.layers[1:], strict=False), 1):
                values[f"gap {place}"] = min(self._widest, layer - before)
        for place, (above, share) in enumerate(zip(point.shape, point.shape[1:], strict=False), 1):
            values[f"share {place}"] = min(1.0, max(LEAST_SHARE, share / above))
        return values
