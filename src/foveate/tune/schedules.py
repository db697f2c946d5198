"""Tuning a schedule: the full model once, a search, a choice on other pictures, and a report on others again."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate._versions import versions
from foveate.ask.vlm import VLM
from foveate.errors import BudgetError, SettingError
from foveate.eval.stats import Resampled, estimate
from foveate.methods.base import Method
from foveate.methods.controls import same_schedule
from foveate.methods.random import Random
from foveate.methods.space import Point, Space
from foveate.methods.uniform import Uniform
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.forcing import Outcome, Target, greedy, targets
from foveate.tune.race import Journal, Race
from foveate.tune.samples import About, digest, grouped, notes_on, split
from foveate.tune.search import LOCAL, RANDOM, Found, Searched, Trial, search
from foveate.tune.tuned import Row, Tuned
from foveate.tune.workers import Crew

__all__ = ["Listener", "published_point", "tune_schedule"]

DRAWS = 3
"""Random droppings that are averaged in the comparison."""
FINALISTS = 6
Listener = Callable[[str], object]
Column = NDArray[Any]


def tune_schedule(
    model: Any,
    samples: Iterable[Any],
    method: Method,
    limit: Limit,
    *,
    task: str = "",
    seconds: float | None = None,
    seed: int = 0,
    jobs: int = 1,
    state: str | Path | None = None,
    drawn: int = RANDOM,
    steps: int = LOCAL,
    max_new_tokens: int = 64,
    name: str = "",
    advance: Listener | None = None,
) -> Tuned:
    """Search cut layers, ratios and settings of a method; see `foveate.tune.tuning.tune`."""
    begun = time.monotonic()
    listen = advance or _unheard
    inner = model.model if isinstance(model, VLM) else model
    pictures = grouped(model, samples)
    parts = split(pictures, seed)
    everything = [sample for about in pictures for sample in about.samples]
    prices = Prices(inner, everything, limit.kind)
    if prices.of(None) <= limit.value:
        raise SettingError(f"A budget of {limit} drops nothing: the full model spends {prices.of(None):.4g}.")
    space = method.space(prices.depth)
    if space is None:
        raise SettingError(f"{type(method).__name__} has no schedule and no setting that could be searched.")
    prices.plan(method)  # or a refusal: what it keeps must be known before
    answers = _Answers(inner, pictures, max_new_tokens, listen)
    inputs = digest(
        {f"{about.key}/{at}": one.inputs["input_ids"] for about in pictures for at, one in enumerate(about.samples)}
    )
    journal = Journal(None if state is None else Path(state), f"{name} {versions()} {inputs}")
    with ExitStack() as ending:
        crew = None
        if jobs > 1:
            crew = Crew(model, pictures, {about.key: answers[about.key] for about in pictures}, jobs)
            ending.callback(crew.close)
        race = Race(inner, answers, journal, seconds, crew)
        published = published_point(method, space, prices, limit)
        start = published or usual_point(method, space, prices)
        trial = Trial(
            solve=partial(_solved, space, prices, limit.value),
            score=partial(race.score, pictures=parts.search),
            over=lambda: race.over,
            advance=lambda: listen("setting"),
        )
        searched = search(space, [start], trial, seed, drawn=drawn, steps=steps)
        if not searched.best:
            raise BudgetError(f"No setting of {method.name} costs {limit} or less. Give a larger budget.")
        as_published = None if published is None else solved(space, published, prices, limit.value)
        choice = _chosen(race, searched, as_published, parts.choose)
        rows = _Report(race, prices, parts.report).rows(as_published, choice)
    return Tuned(
        method=choice.method,
        chosen=choice.origin,
        base=method.to_dict(),
        model=name,
        task=task,
        budget={limit.kind: limit.value},
        cost=round(prices.of(choice.method), 6),
        tokens=round(prices.tokens(choice.method), 4),
        pictures=(len(parts.search), len(parts.choose), len(parts.report)),
        questions=len(everything),
        inputs=inputs,
        seed=seed,
        tried=searched.tried,
        runs=race.runs,
        seconds=round(time.monotonic() - begun, 1),
        complete=searched.complete,
        rows=tuple(rows),
        notes=tuple(_notes(pictures, searched)),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _unheard(what: str) -> None:
    """Nobody listens."""


class _Answers(dict[str, list[Target]]):
    """The full model's answers by picture, made when they are first asked for: a search that goes on needs few."""

    def __init__(self, model: Any, pictures: Sequence[About], max_new_tokens: int, listen: Listener) -> None:
        super().__init__()
        self._model = model
        self._pictures = {about.key: about for about in pictures}
        self._max_new_tokens = max_new_tokens
        self._listen = listen

    def __missing__(self, key: str) -> list[Target]:
        about = self._pictures[key]
        self._listen("picture")
        self[key] = targets(self._model, about, greedy(self._model, about.samples, self._max_new_tokens))
        return self[key]


def _solved(space: Space, prices: Prices, limit: float, point: Point) -> Method | None:
    return solved(space, point, prices, limit)


def _notes(pictures: Sequence[About], searched: Searched) -> list[str]:
    notes = notes_on(pictures)
    if not searched.complete:
        notes.append(f"The time was up after {searched.tried} settings; this is the best of them.")
    return notes


# -- where to begin -----------------------------------------------------------------------------------------------


def published_point(method: Method, space: Space, prices: Prices, limit: Limit) -> Point | None:
    """The schedule that the method has by itself at this budget; None where it cannot go so low."""
    share = limit.value / prices.entered if limit.kind == "tokens" else limit.value
    return _point_at(method, space, prices, share)


def usual_point(method: Method, space: Space, prices: Prices) -> Point:
    """The method's own schedule at the nearest budget that it can meet: its layers and shape are scaled down."""
    for share in (0.12, 0.2, 1 / 3, 0.5, 0.7):
        point = _point_at(method, space, prices, share)
        if point is not None:
            return point
    own = space.point_of(prices.plan(method), prices.entered, space.usual)
    if own is None:
        raise SettingError(f"{method.name} keeps every token by its own settings: there is no schedule to begin with.")
    return own


def _point_at(method: Method, space: Space, prices: Prices, share: float) -> Point | None:
    try:
        plan = prices.plan(_budgeted(method, share))
    except (BudgetError, SettingError):
        return None
    return space.point_of(plan, prices.entered, space.usual)


def _budgeted(method: Method, share: float) -> Method:
    """The method with a mean share; one that was given a schedule keeps it."""
    try:
        return method.with_budget(retention=share)
    except BudgetError:
        raise
    except SettingError:
        return method


# -- choosing -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Choice:
    """The setting to use, where it comes from, and the best of the small grid."""

    method: Method
    origin: str
    grid: Method


def _chosen(race: Race, searched: Searched, published: Method | None, pictures: Sequence[About]) -> _Choice:
    """The best on pictures that were not searched with; the simpler stays unless the interval is against it."""
    race.unlimited()
    resampled = Resampled([about.key for about in pictures for _ in about.samples])
    grid = _best_of(race, searched.grid or searched.best[:1], pictures)
    found = _best_of(race, searched.best[:FINALISTS], pictures)
    method, origin = (grid, "grid") if published is None else (published, "published")
    for rival, name in ((grid, "grid"), (found, "search")):
        if _is_better(race, resampled, rival, method, pictures):
            method, origin = rival, name
    return _Choice(method, origin, grid)


def _best_of(race: Race, found: Sequence[Found], pictures: Sequence[About]) -> Method:
    methods = [one.method for one in found[:FINALISTS]]
    return min(methods, key=lambda method: float(race.column(method, pictures, _root).mean()))


def _is_better(race: Race, resampled: Resampled, rival: Method, method: Method, pictures: Sequence[About]) -> bool:
    """Whether the 95 % interval of the difference in root divergence lies below 0."""
    if rival == method:
        return False
    difference = race.column(rival, pictures, _root) - race.column(method, pictures, _root)
    return estimate(resampled.means(difference)).high < 0


def _root(outcome: Outcome) -> float:
    return outcome.root


def _agrees(outcome: Outcome) -> float:
    return float(outcome.agrees)


# -- reporting ----------------------------------------------------------------------------------------------------


class _Report:
    """The comparison on pictures that were used for nothing else."""

    def __init__(self, race: Race, prices: Prices, pictures: Sequence[About]) -> None:
        self.race = race
        self.prices = prices
        self.pictures = pictures
        self.resampled = Resampled([about.key for about in pictures for _ in about.samples])

    def rows(self, published: Method | None, choice: _Choice) -> list[Row]:
        """The published schedule, the best of the grid, the tuned one, and random at the schedules of both."""
        tuned = choice.method
        base = None if published is None else self.race.column(published, self.pictures, _agrees)
        rows = []
        if published is not None:
            rows.append(self._row("published", [published], None))
            rows.append(self._row("random, published schedule", self._draws(published), base))
        rows.append(self._row("grid", [choice.grid], base))
        rows.append(self._row("tuned", [tuned], base))
        rows.append(self._row("random, tuned schedule", self._draws(tuned), base))
        rows.append(self._row("uniform, tuned schedule", [self._control(tuned, Uniform())], base))
        return rows

    def _draws(self, method: Method) -> list[Method]:
        return [self._control(method, Random(seed=seed)) for seed in range(DRAWS)]

    def _control(self, method: Method, control: Random | Uniform) -> Method:
        return same_schedule(self.prices.plan(method), self.prices.entered, control=control)

    def _row(self, name: str, methods: Sequence[Method], published: Column | None) -> Row:
        agrees = np.mean([self.race.column(method, self.pictures, _agrees) for method in methods], axis=0)
        roots = np.mean([self.race.column(method, self.pictures, _root) for method in methods], axis=0)
        ahead = None if published is None else estimate(self.resampled.means(agrees - published))
        return Row(
            name=name,
            method=methods[0],
            tokens=self.prices.tokens(methods[0]),
            agreement=self.resampled.proportion(agrees),
            root=self.resampled.mean(roots),
            ahead=ahead,
        )
