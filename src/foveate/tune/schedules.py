"""Tuning a schedule: the full model once, a search, a choice on other pictures, and a report on others again."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from foveate._versions import versions
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.contract.space import Space, space_of
from foveate.errors import BudgetError, SettingError
from foveate.tune.choosing import FEWEST, Choice, chosen
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.forcing import Target, answered
from foveate.tune.race import Race, open_journal
from foveate.tune.report import Report
from foveate.tune.samples import About, Split, digest, grouped, notes_on, split
from foveate.tune.search import LOCAL, RANDOM, Searched, Trial, search
from foveate.tune.starting import budgeted, left_to_search, published_point, usual_point
from foveate.tune.tuned import Tuned, points
from foveate.tune.workers import Crew

__all__ = ["Listener", "tune_schedule"]

Listener = Callable[[str], object]


def tune_schedule(
    model: Any,
    samples: Iterable[Any],
    method: Method,
    limit: Limit,
    *,
    given: Collection[str] = (),
    task: str = "",
    seconds: float | None = None,
    seed: int = 0,
    workers: int = 1,
    state: str | Path | None = None,
    drawn: int = RANDOM,
    steps: int = LOCAL,
    max_new_tokens: int = 64,
    name: str = "",
    advance: Listener | None = None,
) -> Tuned:
    """Search cut layers, ratios and settings of a method; see `foveate.tune.tuning.tune`.

    `given` names settings that stay, of a chain with the place of their member: "1.metric".
    """
    begun = time.monotonic()
    listen = advance or _unheard
    ground = _prepared(model, samples, method, limit, given, seed, f"{name} {max_new_tokens}")
    inner, prices, space, parts = ground.model, ground.prices, ground.space, ground.parts
    answers = _Answers(inner, ground.pictures, max_new_tokens, listen)
    with ExitStack() as ending:
        journal = ending.enter_context(open_journal(None if state is None else Path(state), ground.origin))
        crew = None
        if workers > 1:
            crew = Crew(model, ground.pictures, workers)
            ending.callback(crew.close)
            answers.made_by(crew)
        race = Race(inner, answers, journal, seconds, crew)
        start = published_point(method, space, prices, limit)
        trial = Trial(
            solve=lambda point: solved(space, point, prices, limit.value),
            score=partial(race.score, pictures=parts.search),
            over=lambda: race.over,
            advance=lambda: listen("setting"),
        )
        searched = search(space, [start or usual_point(method, space, prices)], trial, seed, drawn=drawn, steps=steps)
        if not searched.best:
            raise BudgetError(f"No setting of {method.name} meets {limit}. Give a budget that is easier to meet.")
        published = None if start is None else trial.solve(start)
        race.unlimited()
        choice = chosen(race, searched, published, parts)
        report = Report(race=race, prices=prices, pictures=parts.report)
        rows = report.rows(published, choice)
        notes = _compared(report, published, choice)
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
        questions=sum(len(about.samples) for about in ground.pictures),
        inputs=ground.inputs,
        seed=seed,
        tried=searched.tried,
        runs=race.runs,
        seconds=round(time.monotonic() - begun, 1),
        complete=searched.complete,
        rows=tuple(rows),
        notes=(*_notes(ground, searched), *notes),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ground:
    """What a search stands on.

    Attributes:
        model: Of transformers.
        space: What may be searched.
        prices: What settings cost on the samples.
        pictures: With their questions.
        parts: The pictures split.
        inputs: SHA-256 of all samples.
        origin: What outcomes depend on.
    """

    model: Any
    space: Space
    prices: Prices
    pictures: Sequence[About]
    parts: Split
    inputs: str
    origin: str


def _prepared(
    model: Any,
    samples: Iterable[Any],
    method: Method,
    limit: Limit,
    given: Collection[str],
    seed: int,
    name: str,
) -> _Ground:
    """All that a search stands on, or a refusal, before anything is run."""
    inner = model.model if isinstance(model, VLM) else model
    pictures = grouped(model, samples)
    parts = split(pictures, seed)
    everything = [sample for about in pictures for sample in about.samples]
    inputs = digest(
        {f"{about.key}/{at}": one.inputs["input_ids"] for about in pictures for at, one in enumerate(about.samples)}
    )
    kind = f"{inner.dtype} {inner.device.type} {inner.config._attn_implementation}"
    prices = Prices(inner, everything, limit.kind)
    if prices.of(None) <= limit.value:
        raise SettingError(f"A budget of {limit} drops nothing: the full model spends {prices.of(None):.4g}.")
    space = space_of(method, prices.depth)
    if space is None:
        raise SettingError(f"{type(method).__name__} has no schedule and no setting that could be searched.")
    with suppress(BudgetError):
        prices.plan(budgeted(method, 0.5))  # or a refusal: what it keeps must be known before
    return _Ground(
        model=inner,
        space=left_to_search(space, method, given),
        prices=prices,
        pictures=pictures,
        parts=parts,
        inputs=inputs,
        origin=f"{name} {kind} {versions()} {inputs}",
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
        self._crew: Crew | None = None

    def made_by(self, crew: Crew) -> None:
        """Let several processes make them, all at once when the first is asked for."""
        self._crew = crew

    def __missing__(self, key: str) -> list[Target]:
        if self._crew is not None:
            missing = [about for about in self._pictures.values() if about.key not in self]
            made = self._crew.answers(missing, self._max_new_tokens)
            self.update(zip([about.key for about in missing], made, strict=True))
            return self[key]
        self._listen("picture")
        self[key] = answered(self._model, self._pictures[key], self._max_new_tokens)
        return self[key]


def _notes(ground: _Ground, searched: Searched) -> list[str]:
    notes = notes_on(ground.pictures)
    if len(ground.parts.choose) < FEWEST:
        notes.append(
            f"only {len(ground.parts.choose)} pictures are left to choose with, too few: the published schedule stays; "
            "where there is none, the best of the small grid is taken. Give 17 pictures or more."
        )
    if not searched.complete:
        notes.append(f"The time was up after {searched.tried} settings; this is the best of them.")
    return notes


def _compared(report: Report, published: Method | None, choice: Choice) -> list[str]:
    """What searching brought, and on how many pictures the tuned setting is worse than the published one."""
    notes = []
    if choice.origin == "search":
        gain = points(report.gain(choice.method, choice.grid), "+")
        notes.append(f"Searching brought {gain} points of agreement over the best of the small grid.")
    if choice.origin != "published" and published is not None:
        worse = report.worse(published, choice.method)
        notes.append(
            f"On {worse} of {len(report.pictures)} pictures its answers are further off than the published schedule's."
        )
    return notes
