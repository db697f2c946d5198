"""Calibrate a second look on the user's samples, without labels, by comparing settings with the full model."""

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
from foveate.contract.settings import AtLeastOne, Count
from foveate.errors import BudgetError, SettingError
from foveate.eval.evaluation import open_questioning
from foveate.eval.pairing import Log
from foveate.eval.plan import Plan
from foveate.eval.records import record_of_both
from foveate.naming import method_of, parse
from foveate.plain.spelling import parse_text, read_json
from foveate.runs.listener import Listener
from foveate.tuning.parts import by_picture, digest, digest_of, notes_on, prompt_of, question_of
from foveate.tuning.promise import fewest, one_each, threshold

T = TypeVar("T")

METHOD = "vidcom2"
"""The default method."""
BUDGETS = (2 / 9, 1 / 9, 1 / 3)
"""Shares that are tried for a method without a budget. With too few samples for three, only the first."""


class Agreeing(TypedDict, total=False):
    """Keywords of a calibration.

    Attributes:
        tasks: The task of each sample, for a table by task.
        seed: Seed for choosing the question of each picture that counts for the bound; 0 by default.
        max_new_tokens: Maximum tokens of an answer; 64 by default.
        workers: Number of processes, each with its own model, as in `foveate eval`; 1 by default.
        cache: Folder for the answers; by default foveate/eval in the user's cache folder. Answers found there are not
            asked again, so a stopped run continues.
        listener: Receives the progress.
    """

    tasks: Sequence[str]
    seed: int
    max_new_tokens: AtLeastOne
    workers: Count
    cache: str | Path | None
    listener: Listener | None


def settings_to_try(method: Method | str, settings: Sequence[str] = (), **budget: float) -> tuple[Method, ...]:
    """Return the settings to try: a method at its budget, or one without a budget at three budgets.

    They are fixed before any sample is seen, because settings chosen on the bound's samples would void it.
    """
    if budget:
        return (method_of(method, settings=settings, **budget),)
    if isinstance(method, str):
        method = parse(method, settings)
    if method.open:
        return tuple(method.with_budget(retention=share) for share in BUDGETS)
    return (method,)


def plan_of(how: Mapping[str, Any]) -> Plan:
    """Return the plan (workers, answer length, cache) of the keywords of `foveate.tune`."""
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
    """Return the cheapest second look that keeps the agreement, with its promise; see `foveate.tuning.promise`.

    Args:
        vlm: The model.
        samples: (media, question) pairs or prompts.
        settings: The settings to try.
        agreement: Required share of answers that equal the full model's.
        texts: The texts of the settings, if they were given as texts.
        may_narrow: Try only the first setting if there are too few samples for all.
        how: See `Agreeing`.

    Raises:
        BudgetError: If no setting keeps the promise at a lower cost than the full model.
        SettingError: If there are too few samples, a schedule was tuned on them, or a keyword is unknown.
    """
    if unread := sorted(set(how) - set(Agreeing.__annotations__)):
        raise SettingError(f"With agreement= no schedule is tuned: leave {', '.join(unread)} out.")
    listener, seed = how.get("listener") or Listener(), how.get("seed", 0)
    every = [prompt_of(vlm, sample) for sample in samples]
    kinds = list(how.get("tasks", ())) or ["samples"] * len(every)
    if len(kinds) != len(every):
        raise SettingError(f"tasks must name one task for each sample; got {len(kinds)} for {len(every)}.")
    first: dict[str, int] = {}  # where each sample is for the first time
    for place, prompt in enumerate(every):
        first.setdefault(digest(prompt.inputs), place)
    once = list(first.values())
    prompts, questions = _at(once, every), [question_of(every[place], kinds[place]) for place in once]
    about, inputs = by_picture(prompts), digest_of(by_picture(every))
    for part in (part for text in texts for part in parse_text(text)):
        if part.is_file and read_json(part.name).get("inputs") == inputs:  # a bound on these samples would be void
            raise SettingError(
                f"{part.name} was tuned on these same samples, so they cannot test it. Calibrate on other pictures."
            )
    pictures = [question.picture for question in questions]
    settings, places, notes = _plan(pictures, settings, agreement, seed, may_narrow)
    if len(prompts) < len(every):
        notes.append(f"{len(every) - len(prompts)} samples repeat another one, and are left out.")
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
        if sure is not None:  # None: no answer can be trusted
            rows = [record_of_both(row, other, sure) for row, other in zip(log, full, strict=True)]
            looks.append((_mean(_at(places, rows), cost), place, sure, rows))
    price, best, sure, rows = min(looks, default=(math.inf, 0, 1.0, []))
    if price >= _mean(_at(places, full), cost):
        none = f"none of {len(settings)} settings keeps"
        if len(settings) == 1:
            none = f"{settings[0]} does not keep"
        raise BudgetError(
            f"Use the full model: {none} {share_words(agreement)} agreement at a lower cost. Or ask for less "
            "agreement, give more samples, or try another method."
        )
    differs = [row["answer"] != other["answer"] for row, other in zip(rows, full, strict=True)]
    tasks = []
    for task in dict.fromkeys(row["task"] for row in full):
        of_task = [place for place, row in enumerate(full) if row["task"] == task]
        again, differ = _mean(_at(of_task, rows), "again"), fmean(_at(of_task, differs))
        tasks.append(TaskLook(task=task, questions=len(of_task), again=again, differ=differ))
    steps = [_mean(_at(places, log), "new_tokens") for log in (rows, full)]
    decoding = "Decoding takes {:.1f} steps per answer, both looks together; the full model takes {:.1f}."
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
        notes=(*notes, *notes_on(about), decoding.format(*steps)),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return SecondLook(method=settings[best], sure=sure, promise=promise)


def _plan(
    pictures: Sequence[str], settings: Sequence[Method], agreement: float, seed: int, may_narrow: bool
) -> tuple[Sequence[Method], list[int], list[str]]:
    """Return the settings to try, the indices of the samples that count for the bound, and notes.

    Raises:
        SettingError: If there are too few samples.
    """
    counts = [len(settings)]
    if may_narrow:
        counts.append(1)
    approximate = (
        "There are too few pictures for a bound with one question each, so all questions count. Questions about one "
        "picture are not independent, so the promise is approximate."
    )
    for places, notes in ((one_each(pictures, seed), []), (list(range(len(pictures))), [approximate])):
        for count in counts:
            if len(places) < fewest(agreement, count):
                continue
            if count < len(settings):
                least = fewest(agreement, len(settings))
                notes.append(f"{len(settings)} settings need {least} samples: only {settings[0]} is tried.")
            return settings[:count], places, notes
    least = fewest(agreement, count)
    raise SettingError(
        f"{share_words(agreement)} agreement needs {least} samples for {count} setting{'s' * (count > 1)}, each of a "
        f"different picture; got {len(pictures)}: {least - len(pictures)} are missing. Give more samples, try fewer "
        "settings, or ask for less agreement."
    )


def _at(places: Iterable[int], values: Sequence[T]) -> list[T]:
    """Return the values at these indices."""
    return [values[place] for place in places]


def _mean(rows: Log, figure: str) -> float:
    """Return the mean of one column of records."""
    return fmean(row[figure] for row in rows)
