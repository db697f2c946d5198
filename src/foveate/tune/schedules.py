"""Tuning a schedule: the full model once, a search, a choice on other pictures, and a report on others again."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from foveate._versions import versions
from foveate.ask.vlm import VLM
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method
from foveate.methods.space import Point, Space
from foveate.tune.choosing import Choice, chosen
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.forcing import Target, answered
from foveate.tune.race import Journal, Race
from foveate.tune.report import Report
from foveate.tune.samples import About, Sample, asked_of, digest, grouped, notes_on, split
from foveate.tune.search import LOCAL, RANDOM, Found, Searched, Trial, search
from foveate.tune.thresholding import adaptive, refuse_without_scores, spent
from foveate.tune.timing import Timings, measured
from foveate.tune.tuned import Row, Tuned
from foveate.tune.workers import Crew

__all__ = ["Listener", "published_point", "tune_schedule"]

DRAWS = 3
"""Random droppings that are averaged in the comparison."""
FINALISTS = 8
Listener = Callable[[str], object]


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
    with_thresholds: bool = False,
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
    inputs = digest(
        {f"{about.key}/{at}": one.inputs["input_ids"] for about in pictures for at, one in enumerate(about.samples)}
    )
    journal = Journal(None if state is None else Path(state), f"{name} {versions()} {inputs}")
    prices = Prices(inner, everything, limit.kind, _timings(inner, everything, limit, journal))
    if prices.of(None) <= limit.most:
        raise SettingError(f"A budget of {limit} drops nothing: the full model spends {prices.of(None):.4g}.")
    space = method.space(prices.depth)
    if space is None:
        raise SettingError(f"{type(method).__name__} has no schedule and no setting that could be searched.")
    prices.plan(method)  # or a refusal: what it keeps must be known before
    if with_thresholds:
        refuse_without_scores(method, prices.depth)
    answers = _Answers(inner, pictures, max_new_tokens, listen)
    with ExitStack() as ending:
        crew = None
        if jobs > 1:
            crew = Crew(model, pictures, jobs)
            ending.callback(crew.close)
            answers.update(zip([about.key for about in pictures], crew.answers(pictures, max_new_tokens), strict=True))
        race = Race(inner, answers, journal, seconds, crew)
        start = published_point(method, space, prices, limit)
        trial = Trial(
            solve=lambda point: solved(space, point, prices, limit.most),
            score=partial(race.score, pictures=parts.search),
            over=lambda: race.over,
            advance=lambda: listen("setting"),
        )
        searched = search(space, [start or usual_point(method, space, prices)], trial, seed, drawn=drawn, steps=steps)
        if not searched.best:
            raise BudgetError(f"No setting of {method.name} costs {limit} or less. Give a larger budget.")
        published = None if start is None else _published(trial, start)
        race.unlimited()
        choice = chosen(race, searched, published, parts.choose)
        report = Report(race=race, prices=prices, pictures=parts.report)
        as_published = None if published is None else published.method
        rows = report.rows(as_published, choice)
        notes = [*_notes(pictures, searched), *_fears(report, as_published, choice)]
        travel: list[Row] = []
        if choice.origin != "published":
            known = {asked_of(sample) for about in (*parts.search, *parts.choose) for sample in about.samples}
            travel = report.budgets(_other_budgets(method, space, prices, limit, choice.point))
            travel += report.questions(as_published, choice.method, known)
        final, tokens = choice.method, prices.tokens(choice.method)
        if with_thresholds:
            final = adaptive(inner, choice.method, (*parts.search, *parts.choose))
            counts = spent(inner, final, parts.report)
            tokens = fmean(counts)
            base = None if as_published is None else report.agrees(as_published)
            rows.append(report.row("adaptive", [final], base, tokens=tokens))
            notes.append(_drift(counts, prices.tokens(choice.method), len(parts.search) + len(parts.choose)))
    timed = None
    if limit.kind == "speedup":
        timed = measured(inner, everything[0], final).to_dict()
    return Tuned(
        method=final,
        chosen=choice.origin,
        base=method.to_dict(),
        model=name,
        task=task,
        budget={limit.kind: limit.value},
        cost=round(prices.of(choice.method), 6),
        tokens=round(tokens, 4),
        speedup=timed,
        pictures=(len(parts.search), len(parts.choose), len(parts.report)),
        questions=len(everything),
        inputs=inputs,
        seed=seed,
        tried=searched.tried,
        runs=race.runs,
        seconds=round(time.monotonic() - begun, 1),
        complete=searched.complete,
        rows=tuple(rows),
        travel=tuple(travel),
        notes=tuple(notes),
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
        self._listen("picture")
        self[key] = answered(self._model, self._pictures[key], self._max_new_tokens)
        return self[key]


def _timings(model: Any, samples: Sequence[Sample], limit: Limit, journal: Journal) -> Timings | None:
    """This machine's timings where the budget is a speed-up; a search that goes on takes those that it began with."""
    if limit.kind != "speedup":
        return None
    found = journal.kept("timings", lambda: asdict(Timings.on(model, samples[0])))
    return Timings(tuple(found["counts"]), tuple(found["shares"]))


def _notes(pictures: Sequence[About], searched: Searched) -> list[str]:
    notes = notes_on(pictures)
    if not searched.complete:
        notes.append(f"The time was up after {searched.tried} settings; this is the best of them.")
    return notes


def _fears(report: Report, published: Method | None, choice: Choice) -> list[str]:
    """On how many pictures the chosen setting is worse than the published one."""
    if published is None or choice.origin == "published":
        return []
    worse = report.worse(published, choice.method)
    return [f"On {worse} of {len(report.pictures)} pictures its answers are further off than the published schedule's."]


def _drift(counts: Sequence[float], calibrated: float, pictures: int) -> str:
    """How far adaptive counts are from what they were calibrated to, on other pictures."""
    mean = fmean(counts)
    return (
        f"Adaptive counts were calibrated on {pictures} pictures. On others they are {min(counts):.1f} to "
        f"{max(counts):.1f} tokens, {mean:.1f} on average ({mean / calibrated - 1:+.1%}). With 120 pictures or more "
        "the average holds better."
    )


def _other_budgets(
    method: Method, space: Space, prices: Prices, limit: Limit, point: Point
) -> list[tuple[str, Method | None, Method | None]]:
    """Half and twice the budget: in words, the published setting there, and the tuned shape."""
    at = []
    for factor, words in ((0.5, "half the budget"), (2.0, "twice the budget")):
        most = factor * limit.most
        if most >= prices.of(None):
            continue
        start = published_point(method, space, prices, limit, factor)
        published = None if start is None else solved(space, start, prices, most)
        at.append((words, published, solved(space, point, prices, most)))
    return at


# -- where to begin -----------------------------------------------------------------------------------------------


def published_point(method: Method, space: Space, prices: Prices, limit: Limit, factor: float = 1.0) -> Point | None:
    """The schedule that the method has by itself at so many times this budget; None where it cannot go so low."""
    share = factor * limit.most
    if limit.kind == "tokens":
        share /= prices.entered
    return _point_at(method, space, prices, share)


def _published(trial: Trial, point: Point) -> Found | None:
    """The published setting at the budget, without a score."""
    method = trial.solve(point)
    if method is None:
        return None
    return Found(math.nan, point, method)


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
