"""A second look calibrated on samples of one's own, without labels: the full model and some settings answer them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict, TypeVar, Unpack

from foveate.ask.generation import Generation
from foveate.ask.second_look import Promise, SecondLook, TaskLook, conditions_of, share_words
from foveate.ask.vlm import VLM
from foveate.contract.method import Method, meet
from foveate.errors import BudgetError, SettingError
from foveate.eval.evaluation import open_questioning
from foveate.eval.pairing import Row
from foveate.eval.plan import Plan
from foveate.eval.records import record_of_both
from foveate.naming import method_of, parse
from foveate.plain.spelling import read_json, written
from foveate.runs.listener import Listener
from foveate.tuning.parts import by_picture, digest, digest_of, notes_on, prompt_of, question_of
from foveate.tuning.promise import fewest, one_each, threshold

T = TypeVar("T")

METHOD = "vidcom2"
"""What is tried where nobody names a method."""
BUDGETS = (2 / 9, 1 / 9, 1 / 3)
"""What is tried of a method without a budget, as shares: the first alone where samples are too few for three."""
LONG = 6
"""Tokens from which on an answer is long, its end among them."""
ENOUGH = 20
"""Long answers that something is said of."""


class Agreeing(TypedDict, total=False):
    """How a second look is calibrated.

    Attributes:
        tasks: What kind of question each sample is, for a table by task.
        seed: Which question of each picture counts for the bound; 0 by default.
        max_new_tokens: The longest answer; 64 by default.
        workers: Processes, each with a model of its own; as of `foveate eval`. 1 by default.
        cache: The folder where answers are kept, foveate/eval in the user's cache folder by default: what has been
            answered there is not asked again, so that a stopped run goes on.
        listener: Hears how it goes.
    """

    tasks: Sequence[str]
    seed: int
    max_new_tokens: int
    workers: int
    cache: str | Path | None
    listener: Listener | None


def settings_of(method: Method | str, settings: Sequence[str] = (), **budget: float) -> tuple[Method, ...]:
    """What is tried: a method at its budget or as it says, or an open one at three budgets.

    They are fixed before a sample is seen: settings chosen on the samples of a bound void it.
    """
    if budget:
        return (method_of(method, settings=settings, **budget),)
    if isinstance(method, str):
        method = parse(method, settings)
    if method.open:
        return tuple(method.with_budget(retention=share) for share in BUDGETS)
    return (method,)


def plan_of(how: Mapping[str, Any]) -> Plan:
    """Who answers, how long at most, and where that is kept, as keywords of `foveate.tune` say it."""
    return Plan(**{name: how[name] for name in ("cache", "workers", "max_new_tokens") if name in how})


def agree(
    vlm: VLM,
    samples: Iterable[Any],
    settings: Sequence[Method],
    agreement: float,
    texts: Sequence[str] = (),
    *,
    may_narrow: bool = False,
    **how: Unpack[Agreeing],
) -> SecondLook:
    """The cheapest setting whose trusted answers are the full model's, with a promise; see `foveate.tuning.promise`.

    Args:
        vlm: The model.
        samples: (media, question) pairs or prompts.
        settings: What is tried.
        agreement: The share of answers that are to be the full model's.
        texts: How settings were written, where they were texts.
        may_narrow: Whether the first setting alone is tried where samples are too few for all.
        how: See `Agreeing`.

    Raises:
        BudgetError: If nothing cheaper than the full model keeps the promise.
        SettingError: If samples are too few, or a schedule was tuned on them; or if there is no such keyword.
    """
    if unread := sorted(set(how) - set(Agreeing.__annotations__)):
        raise SettingError(f"With agreement= no schedule is tuned: leave {', '.join(unread)} out.")
    listener, seed = how.get("listener") or Listener(), how.get("seed", 0)
    every = [prompt_of(vlm, sample) for sample in samples]
    kinds = list(how.get("tasks", ())) or ["samples"] * len(every)
    if len(kinds) != len(every):
        raise SettingError(f"Give a task for each sample, or none; got {len(kinds)} for {len(every)}.")
    once = sorted({digest(prompt.inputs): place for place, prompt in reversed(list(enumerate(every)))}.values())
    prompts, questions = _at(once, every), [question_of(every[place], kinds[place]) for place in once]
    about, inputs = by_picture(prompts), digest_of(by_picture(every))
    for part in (part for text in texts for part in written(text)):
        if part.is_file and read_json(part.name).get("inputs") == inputs:  # on these samples its bound is void
            raise SettingError(
                f"{part.name} was tuned on these very samples, so they say nothing of it. Calibrate on other pictures."
            )
    pictures = [question.picture for question in questions]
    settings, places, notes = _plan(pictures, settings, agreement, seed, may_narrow)
    if len(prompts) < len(every):
        notes.append(f"{len(every) - len(prompts)} samples ask what another one asks, and are left out.")
    for method in settings:
        for size in sorted({prompt.vision_tokens for prompt in prompts}):
            meet(method, vlm.model, size)
    plan = plan_of(how)
    with open_questioning(vlm, questions, plan, listener) as asking:
        asking.ask(settings, "Answering in full and with few tokens")
        full = asking.log(None)
        quick = [asking.log(method) for method in settings]
    counted = [row for log in (full, *quick) for row in _at(places, log)]
    cost = "spent" if any(row["flops"] is None for row in counted) else "flops"
    looks = []
    for place, log in enumerate(quick):
        answers = zip(_at(places, log), _at(places, full), strict=True)
        pairs = [(row["confidence"], row["answer"] == other["answer"]) for row, other in answers]
        sure = threshold(pairs, agreement, len(settings))
        if sure is not None:  # else nothing of it can be trusted
            rows = [record_of_both(row, other, sure) for row, other in zip(log, full, strict=True)]
            looks.append((_mean(_at(places, rows), cost), place, sure, rows))
    price, best, sure, rows = min(looks, default=(math.inf, 0, 1.0, []))
    if price >= _mean(_at(places, full), cost):
        none = f"none of {len(settings)} settings keeps"
        if len(settings) == 1:
            none = f"{settings[0]} does not keep"
        raise BudgetError(
            f"Take the full model: {none} {share_words(agreement)} agreement for less. Ask for less "
            "agreement, give more samples, or try another method."
        )
    differs = [row["answer"] != other["answer"] for row, other in zip(rows, full, strict=True)]
    tasks = []
    for task in dict.fromkeys(row["task"] for row in full):
        of_task = [place for place, row in enumerate(full) if row["task"] == task]
        again, differ = _mean(_at(of_task, rows), "again"), fmean(_at(of_task, differs))
        tasks.append(TaskLook(task=task, questions=len(of_task), again=again, differ=differ))
    promise = Promise(
        agreement=agreement,
        samples=len(places),
        wrong=sum(_at(places, differs)),
        tried=len(settings),
        pictures=len(about),
        again=_mean(_at(places, rows), "again"),
        tokens=_mean(_at(places, rows), "spent"),
        first=_mean(_at(places, quick[best]), "spent"),
        full=_mean(_at(places, full), "spent"),
        tasks=tuple(tasks),
        model=vlm.name,
        conditions=conditions_of(vlm, Generation(max_new_tokens=plan.max_new_tokens)),
        single_turn=all(prompt.single_turn for prompt in prompts),
        notes=(*notes, *notes_on(about), *_on_length(_at(places, rows), _at(places, full))),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return SecondLook(method=settings[best], sure=sure, promise=promise)


def _plan(
    pictures: Sequence[str], settings: Sequence[Method], agreement: float, seed: int, may_narrow: bool
) -> tuple[Sequence[Method], list[int], list[str]]:
    """What is tried, the places of the samples that count for the bound, and what is to be said of it.

    Raises:
        SettingError: If samples are too few.
    """
    counts = [len(settings)]
    if may_narrow:
        counts.append(1)
    approximate = (
        "Pictures are too few for a bound of one question each, so all questions count. Those about one picture are "
        "not independent: the promise is approximate."
    )
    for places, notes in ((one_each(pictures, seed), []), (list(range(len(pictures))), [approximate])):
        for count in counts:
            if len(places) < fewest(agreement, count):
                continue
            if count < len(settings):
                least = fewest(agreement, len(settings))
                notes.append(f"{len(settings)} settings take {least} samples: {settings[0]} alone is tried.")
            return settings[:count], places, notes
    least = fewest(agreement, count)
    raise SettingError(
        f"{share_words(agreement)} agreement takes {least} samples for {count} setting{'s' * (count > 1)}, each of "
        f"another picture; got {len(pictures)}: {least - len(pictures)} are missing. Give more, try fewer settings, or "
        "ask for less."
    )


def _on_length(rows: Sequence[Row], full: Sequence[Row]) -> list[str]:
    """What a second look makes of decoding, and of long answers, in the user's own figures."""
    steps = _mean(rows, "new_tokens")
    notes = [
        f"Decoding takes {steps:.1f} steps an answer, both looks together; the full model "
        f"{_mean(full, 'new_tokens'):.1f}."
    ]
    again: dict[bool, list[float]] = {True: [], False: []}
    for row, other in zip(rows, full, strict=True):
        again[other["new_tokens"] >= LONG].append(row["again"])
    if len(again[True]) >= ENOUGH:
        words = (
            f"Of {len(again[True])} answers of {LONG} tokens or more {share_words(fmean(again[True]))} are asked again"
        )
        others = ""
        if again[False]:
            others = f", of the {len(again[False])} shorter ones {share_words(fmean(again[False]))}"
        notes.append(f"{words}{others}: long answers gain little.")
    return notes


def _at(places: Iterable[int], values: Sequence[T]) -> list[T]:
    """The values at these places."""
    return [values[place] for place in places]


def _mean(rows: Iterable[Row], figure: str) -> float:
    """The mean of a figure of records."""
    return fmean(row[figure] for row in rows)
