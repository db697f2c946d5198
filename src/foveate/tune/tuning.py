"""`foveate.tune`: the full model once, settings at one cost, a choice by other pictures, a report by others again."""

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Unpack, cast, overload

from foveate import naming
from foveate.ask.second_look import SecondLook
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.contract.space import Point, Space, space_of
from foveate.errors import BudgetError, FoveateError, SettingError, UnsupportedError
from foveate.methods.vidcom2 import VidCom2
from foveate.naming import method_of
from foveate.plain.spelling import check_keywords
from foveate.plain.upstream import brief
from foveate.runs.listener import Advance, Listener
from foveate.runs.versions import versions
from foveate.tune.agreeing import MAX_NEW_TOKENS, Agreeing, agree, settings_of as settings_to_agree
from foveate.tune.choice import (
    agrees,
    chosen,
    comparison,
    lead,
    remarks,
    root_of,
    runs_to_choose,
    runs_to_compare,
    untuned,
)
from foveate.tune.parts import About, Split, digest_of, grouped, notes_on, split
from foveate.tune.prices import KINDS, NEAR, Limit, Measured, Prices, solved
from foveate.tune.searching import (
    Tried,
    budgeted,
    grid,
    left_to_search,
    published_point,
    searched,
    settings_of,
    usual_point,
)
from foveate.tune.trials import FEWEST, Trials, open_trials
from foveate.tune.tuned import Tuned
from foveate.tune.tunings import Outcome, Tunings


class Tuning(Agreeing, total=False):
    """How settings are searched, beside what `Agreeing` says; `tasks` is for `agreement` alone.

    Attributes:
        given: Settings that stay of a method that is no name; of a chain with their member's place, "1.metric".
        search: Settings to try beyond the small grid, 0 by default; more need optuna, the extra `tune`.
        task: What the samples show, for the record.
        workers: Processes that run pictures at once, each with a model of its own; for a `VLM` on a CPU. 1 by default.
        state: A folder in which what was tried is kept; with the same one a stopped search goes on.
    """

    given: Collection[str]
    search: int
    task: str
    workers: int
    state: str | Path | None


METHOD = "v2drop"
"""What is tuned where nobody names a method."""


@overload
def tune(
    model: Any,
    samples: Iterable[Any],
    *,
    agreement: None = None,
    method: Method | str | None = None,
    tokens: float | None = None,
    retention: float | None = None,
    flops: float | None = None,
    kv: float | None = None,
    **how: Unpack[Tuning],
) -> Tuned: ...
@overload
def tune(
    model: Any,
    samples: Iterable[Any],
    *,
    agreement: float,
    method: Method | str | None = None,
    tokens: float | None = None,
    retention: float | None = None,
    flops: None = None,
    kv: None = None,
    **how: Unpack[Tuning],
) -> SecondLook: ...
def tune(
    model: Any,
    samples: Iterable[Any],
    *,
    agreement: float | None = None,
    method: Method | str | None = None,
    tokens: float | None = None,
    retention: float | None = None,
    flops: float | None = None,
    kv: float | None = None,
    **how: Unpack[Tuning],
) -> Tuned | SecondLook:
    """The best setting of a method for a model, a budget and samples of one's own, without labels.

        tuned = foveate.tune(vlm, [("a.png", "What is it?"), …], method="v2drop", tokens=64)
        tuned.save("mine.json")
        vlm.ask("b.png", "What is it?", method="mine.json")

    A small grid of settings is tried at one cost, for the answers that stay nearest to the full model's; with `search`
    as many more cut layers, ratios and settings as optuna suggests. Pictures are split: to search, to choose among the
    best, and to report with. Costs are counted from a setting's plan. MustDrop has none: its thresholds are solved by
    running the prompts of the pictures that are not reported.

    With `agreement` no schedule is searched. What comes out is a second look: few tokens, and the full model where the
    answer is unsure, with the promise that with 90 % confidence so many answers are the full model's, on average:

        sure = foveate.tune(vlm, samples, agreement=0.98)
        vlm.ask("b.png", "What is it?", method=sure)

    Args:
        agreement: The share of answers that are to be the full model's, word for word, such as 0.98.
        model: A `VLM`; or a model of transformers, whose samples are then its inputs.
        samples: (media, question) pairs or prompts of `VLM.prepare`; or the model's inputs, batch 1. 45 pictures or
            more are good, 20 are the fewest that say something.
        method: The method, chain, or its name, such as "v2drop:metric=cosine": a setting that is given is not searched.
            V2Drop by default; with `agreement` VidCom2, at three budgets unless one is given.
            Of a method that is no name, those are given that differ from the usual ones.
        tokens: Mean vision tokens that a decoder layer processes.
        retention: The same as a share of the vision tokens, in (0, 1].
        flops: FLOPs to the first token, as a share of the full model's.
        kv: Bytes of the KV cache after the prompt, likewise.
        how: `search`, `seed`, `workers`, `max_new_tokens`, `state`, `listener` and others; see `Tuning`.

    Returns:
        The setting found and where it comes from; `save` writes it as a file that goes wherever a method's name does.
        With `agreement` a second look, whose file goes where questions are asked.

    Raises:
        BudgetError: If no setting meets the budget.
        InputError: If `state` belongs to another model or other samples.
        SettingError: If the budget, the samples or the method cannot be tuned.
        UnsupportedError: If a search is asked for without optuna, or the model cannot serve the method.
    """
    if agreement is not None:
        check_keywords("Tuning", how, Tuning)
        if flops is not None or kv is not None:
            raise SettingError("With agreement= no budget is needed; tokens or retention narrow it. Leave others out.")
        budgeted_method = _with_budget(method, tokens, retention)
        texts = [method] if isinstance(method, str) else []
        settings = settings_to_agree(budgeted_method)
        return agree(model, samples, settings, agreement, texts, may_narrow=True, **cast(Agreeing, how))
    run = _How.of(how)
    asked = _Asked.of(
        method or METHOD, Limit.of(tokens=tokens, retention=retention, flops=flops, kv=kv), given=run.given
    )
    (row,), _ = _tuned(model, samples, [asked], run)
    assert row.tuned is not None  # or an error
    return row.tuned


def _with_budget(method: Method | str | None, tokens: float | None, retention: float | None) -> Method | None:
    """A method with its budget; one that is given none gets none here, so that several are tried."""
    if tokens is None and retention is None:
        if isinstance(method, str):
            return naming.parse(method)
        return method
    return method_of(VidCom2.name if method is None else method, tokens, retention)


def tune_many(
    model: Any,
    samples: Iterable[Any],
    methods: Iterable[Method | str],
    *,
    settings: Sequence[str] = (),
    tokens: Sequence[float] = (),
    retention: Sequence[float] = (),
    flops: Sequence[float] = (),
    kv: Sequence[float] = (),
    **how: Unpack[Tuning],
) -> Tunings:
    """Several methods, each tuned at several budgets as by `tune`, and which is best for these samples.

        tunings = foveate.tune_many(vlm, samples, ["v2drop", "visiondrop"], tokens=[64, 128])
        print(tunings.table())
        tunings.save("mine")  # mine/v2drop-64.json, mine/v2drop-128.json, …

    The full model answers once for all of them. All are compared on the same held-out pictures. What cannot meet a
    budget, and what the model cannot serve, is a row that says why.

    Args:
        model, samples: As of `tune`.
        methods: Methods, chains or their names. A setting that is given is not searched.
        settings: More settings of every method that is a name, such as "metric=cosine".
        tokens, retention, flops, kv: Budgets of one of these kinds, as of `tune`.
        how: `search`, `seed`, `workers`, `max_new_tokens`, `state`, `listener` and others; see `Tuning`.

    Raises:
        FoveateError: As `tune`; of a setting or a budget only where none can be tuned.
    """
    given = {"tokens": tokens, "retention": retention, "flops": flops, "kv": kv}
    kinds = [kind for kind, values in given.items() if values]
    if len(kinds) != 1:
        raise SettingError(f"Give budgets of one kind: {', '.join(f'{kind}=[…]' for kind in KINDS)}; got {len(kinds)}.")
    limits = [Limit(kinds[0], value) for value in given[kinds[0]]]
    methods = list(methods)
    run = _How.of(how)
    asked = [_Asked.of(method, limit, settings, run.given) for limit in limits for method in methods]
    if not asked or len({(one.name, one.limit) for one in asked}) < len(asked):
        raise SettingError(f"Give one method or more, and each method and budget once; got {brief(methods)}.")
    rows, notes = _tuned(model, samples, asked, run)
    return Tunings(rows=tuple(rows), notes=tuple(notes))


# -- what is to be done ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A method at a budget, as somebody asks for it: its name, and the settings that stay."""

    name: str
    method: Method
    given: frozenset[str]
    limit: Limit

    @classmethod
    def of(
        cls, method: Method | str, limit: Limit, settings: Sequence[str] = (), given: Collection[str] = ()
    ) -> "_Asked":
        if isinstance(method, str):
            return cls(method, naming.parse(method, settings), naming.given(method, settings), limit)
        return cls(str(method), method, frozenset(given), limit)

    @property
    def budget(self) -> dict[str, float]:
        return {self.limit.kind: self.limit.value}

    def unmet(self) -> BudgetError:
        """What is wrong where no setting meets the budget."""
        return BudgetError(f"No setting of {self.method.name} meets {self.limit}. Give a larger budget.")


@dataclass(frozen=True, slots=True)
class _How:
    """What is alike for all methods and budgets of a run; see `Tuning`."""

    given: Collection[str] = ()
    search: int = 0
    task: str = ""
    seed: int = 0
    workers: int = 1
    max_new_tokens: int = MAX_NEW_TOKENS
    state: str | Path | None = None
    listener: Listener = field(default_factory=Listener)

    @classmethod
    def of(cls, how: Tuning) -> "_How":
        """What keywords say.

        Raises:
            SettingError: If there is no such keyword, one goes with `agreement` alone, or a number leaves its range.
        """
        check_keywords("Tuning", how, Tuning)
        if "tasks" in how:
            raise SettingError("tasks= is for a table by task, and goes with agreement=. Leave one out, or give both.")
        given: dict[str, Any] = {**how, "listener": how.get("listener") or Listener()}
        return cls(**given)

    def __post_init__(self) -> None:
        if self.workers < 1 or self.search < 0:
            raise SettingError(
                f"workers must be 1 or more, and search 0 or more; got {self.workers} and {self.search}."
            )


@dataclass(frozen=True, slots=True)
class _Samples:
    """The samples of a run, by picture and split, and the model that they are for."""

    model: str
    pictures: tuple[About, ...]
    parts: Split
    inputs: str


@dataclass(frozen=True)
class _Course:
    """What is tried for one method at one budget.

    Attributes:
        asked: The method and the budget.
        space: What may be searched.
        prices: What settings cost to be solved by.
        reported: What they cost on the pictures to report with.
        published: The published setting at this budget, if there is one.
        grid: The settings of the grid, with their points.
        seconds: What it took to solve them.
    """

    asked: _Asked
    space: Space
    prices: Prices
    reported: Prices
    published: Method | None
    grid: Mapping[Method, Point]
    seconds: float

    @classmethod
    def of(cls, asked: _Asked, model: Any, parts: Split, search: int) -> "_Course":
        """Solve the grid to the budget.

        Raises:
            BudgetError: If no setting meets it.
            SettingError: If nothing can be searched.
        """
        begun = time.monotonic()
        space, prices, reported = _priced(model, asked.method, asked.limit, parts)
        space = left_to_search(space, asked.method, asked.given)
        start = published_point(asked.method, space, prices, asked.limit)
        points = grid(space, start or usual_point(asked.method, space, prices))
        settings = settings_of(points, lambda point: solved(space, point, prices, asked.limit.value))
        if not settings and not search:
            raise asked.unmet()
        published = None
        if start is not None:
            published = solved(space, start, prices, asked.limit.value)
        return cls(asked, space, prices, reported, published, settings, time.monotonic() - begun)

    def solve(self, point: Point) -> Method | None:
        """The largest setting of a point's shape that the budget pays for."""
        return solved(self.space, point, self.prices, self.asked.limit.value)


class _Steps:
    """Steps of a part of a run, which are as many as was told: those that it did not need are taken at its end."""

    def __init__(self, total: int, advance: Advance) -> None:
        self._left = total
        self._advance = advance

    def __call__(self, count: int) -> None:
        self._left -= count
        self._advance(count)

    def end(self) -> None:
        self(self._left)


def _tuned(model: Any, samples: Iterable[Any], every: Sequence[_Asked], how: _How) -> tuple[list[Outcome], list[str]]:
    """The outcome of each method and budget, and notes on the samples.

    Raises:
        FoveateError: Of the first method and budget, where none can be tuned.
    """
    inner = model.model if isinstance(model, VLM) else model
    pictures = grouped(model, samples)
    if isinstance(model, VLM):
        name = model.name
    else:
        name = _name_of(inner)
    used = _Samples(name, pictures, split(pictures, how.seed), digest_of(pictures))
    courses: dict[_Asked, _Course] = {}
    errors: dict[_Asked, FoveateError] = {}
    with how.listener.stage("Solving settings to the budget", len(every)) as advance:
        for asked in every:
            try:
                courses[asked] = _Course.of(asked, inner, used.parts, how.search)
            except (SettingError, UnsupportedError) as error:
                errors[asked] = error
            advance(1)
    if not courses:
        raise next(iter(errors.values()))
    found: dict[_Asked, Tuned] = {}
    sizes = [_size(course, used.parts, how.search) for course in courses.values()]
    kind = f"{inner.dtype} {inner.device.type} {inner.config._attn_implementation}"
    with how.listener.stage("Tuning, in pictures run", len(pictures) + sum(sizes)) as advance:
        answered = _Steps(len(pictures), advance)
        with open_trials(
            model,
            pictures,
            how.max_new_tokens,
            state=None if how.state is None else Path(how.state),
            origin=f"{name} {how.max_new_tokens} {kind} {versions()} {used.inputs}",
            workers=how.workers,
            advance=answered,
        ) as trials:
            for course, size in zip(courses.values(), sizes, strict=True):
                steps = _Steps(size, advance)
                try:
                    found[course.asked] = _run(course, trials, used, how, steps)
                except (SettingError, UnsupportedError) as error:
                    errors[course.asked] = error
                steps.end()
            if not found:
                raise next(iter(errors.values()))
            rows = _rows(every, courses, found, errors, trials, used.parts.report)
        answered.end()
    return rows, [*notes_on(pictures), *_few_to_choose(used.parts)]


def _size(course: _Course, parts: Split, search: int) -> int:
    """Pictures that a course runs at most."""
    compared = runs_to_compare(parts, has_published=course.published is not None)
    return (len(course.grid) + search) * len(parts.search) + runs_to_choose(parts) + compared


def _run(course: _Course, trials: Trials, used: _Samples, how: _How, steps: _Steps) -> Tuned:
    """Try settings, choose one, and compare it with others."""
    begun, runs = time.monotonic(), trials.runs
    asked, parts = course.asked, used.parts
    trials.restart()
    tried: list[Tried] = []
    for one in searched(
        course.space,
        course.grid,
        course.solve,
        lambda setting: trials.score(setting, parts.search),
        how.search,
        how.seed,
    ):
        tried.append(one)
        steps(len(parts.search))
    if not tried:
        raise asked.unmet()
    choice = chosen(trials, [one for one in tried if one.whole], course.published, parts)
    steps(runs_to_choose(parts))
    rows = comparison(trials, course.reported, parts.report, choice, steps)
    unspent = 1 - course.prices.of(choice.method) / asked.limit.value
    notes = [*notes_on(used.pictures), *_few_to_choose(parts), *remarks(trials, parts.report, choice)]
    if course.space.solved_for == "threshold" and unspent > NEAR:
        notes.append(
            f"The setting leaves {unspent:.1%} of the budget: with more samples the mean changes in smaller steps."
        )
    if _is_untuned(course):
        notes += untuned(f"{asked.name} untuned at {asked.limit}", rows, choice.origin, len(parts.report))
    return Tuned(
        method=choice.method,
        chosen=choice.origin,
        base=asked.method.to_dict(),
        model=used.model,
        task=how.task,
        budget=asked.budget,
        cost=round(course.prices.of(choice.method), 6),
        tokens=round(course.prices.tokens(choice.method), 4),
        pictures=(len(parts.search), len(parts.choose), len(parts.report)),
        questions=sum(len(about.samples) for about in used.pictures),
        inputs=used.inputs,
        seed=how.seed,
        tried=len(tried),
        runs=trials.runs - runs,
        seconds=round(course.seconds + time.monotonic() - begun, 1),
        rows=tuple(rows),
        notes=tuple(notes),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _is_untuned(course: _Course) -> bool:
    """Whether the published setting is what the method does by itself when it is given the budget."""
    return course.published is not None and course.asked.method.open and course.space.solved_for != "threshold"


def _rows(
    every: Sequence[_Asked],
    courses: Mapping[_Asked, _Course],
    found: Mapping[_Asked, Tuned],
    errors: Mapping[_Asked, FoveateError],
    trials: Trials,
    pictures: Sequence[About],
) -> list[Outcome]:
    """All outcomes, budget by budget; behind those with a setting comes what has none."""
    rows = []
    for limit in dict.fromkeys(asked.limit for asked in every):
        here = [asked for asked in every if asked.limit == limit]
        rows += _best_first([courses[asked] for asked in here if asked in found], found, trials, pictures)
        for asked in here:
            if asked in errors:
                rows.append(Outcome(name=asked.name, budget=asked.budget, infeasible=str(errors[asked])))
    return rows


def _best_first(
    courses: Sequence[_Course], found: Mapping[_Asked, Tuned], trials: Trials, pictures: Sequence[About]
) -> list[Outcome]:
    """What was found at one budget, the highest agreement first (of equals the lowest divergence)."""

    def order(course: _Course) -> tuple[float, float]:
        method = found[course.asked].method
        agreement, root = (trials.column(method, pictures, figure).mean() for figure in (agrees, root_of))
        return -float(agreement), float(root)

    ordered = sorted(courses, key=order)
    rows = []
    for course in ordered:
        asked, tuned = course.asked, found[course.asked]
        best = found[ordered[0].asked].method
        untuned_behind = None
        if course.published is not None and _is_untuned(course):
            untuned_behind = lead(trials, pictures, best, course.published)
        row = Outcome(
            name=asked.name,
            budget=asked.budget,
            tuned=tuned,
            behind=lead(trials, pictures, best, tuned.method),
            untuned_behind=untuned_behind,
        )
        rows.append(row)
    return rows


def _name_of(model: Any) -> str:
    """A model's hub id; of a local folder its name alone, since where it lies is nobody's business."""
    known = getattr(model.config, "name_or_path", "") or model.config.model_type
    if Path(known).is_dir():
        return Path(known).name
    return str(known)


def _priced(model: Any, method: Method, limit: Limit, parts: Split) -> tuple[Space, Prices, Prices]:
    """What may be searched, what settings cost to be solved by, and what they cost to be reported.

    Raises:
        SettingError: If nothing can be searched, or the budget drops nothing.
    """
    to_search, to_report = (
        [sample for about in pictures for sample in about.samples]
        for pictures in ((*parts.search, *parts.choose), parts.report)
    )
    prices = reported = Prices(model, [*to_search, *to_report], limit.kind)
    if prices.of(None) <= limit.value:
        raise SettingError(f"A budget of {limit} drops nothing: the full model spends {prices.of(None):.4g}.")
    space = space_of(method, prices.depth)
    if space is None:
        raise SettingError(f"{type(method).__name__} has no schedule and no setting that could be searched.")
    if space.solved_for == "threshold":
        return space, Measured(model, to_search, limit.kind), Measured(model, to_report, limit.kind)
    with suppress(BudgetError):
        prices.plan(budgeted(method, 0.5))  # or a refusal: what it keeps must be known before
    return space, prices, reported


def _few_to_choose(parts: Split) -> list[str]:
    if len(parts.choose) >= FEWEST:
        return []
    return [
        f"only {len(parts.choose)} pictures are left to choose with, too few: the published schedule stays; "
        "where there is none, the best of the small grid is taken. Give 17 pictures or more."
    ]
