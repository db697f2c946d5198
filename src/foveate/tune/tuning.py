"""`foveate.tune`: the full model once, settings at one cost, a choice by other pictures, a report by others again."""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate import naming
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.contract.space import Space, space_of
from foveate.errors import BudgetError, SettingError
from foveate.runs.versions import versions
from foveate.tune.choice import chosen, comparison, remarks
from foveate.tune.parts import About, Split, digest, grouped, notes_on, split
from foveate.tune.prices import NEAR, Limit, Measured, Prices, solved
from foveate.tune.searching import Tried, budgeted, left_to_search, published_point, searched, usual_point
from foveate.tune.trials import FEWEST, open_trials
from foveate.tune.tuned import Tuned

__all__ = ["tune"]


def tune(
    model: Any,
    samples: Iterable[Any],
    *,
    method: Method | str = "v2drop",
    given: Collection[str] = (),
    tokens: float | None = None,
    retention: float | None = None,
    flops: float | None = None,
    kv: float | None = None,
    search: int = 0,
    task: str = "",
    seed: int = 0,
    workers: int = 1,
    max_new_tokens: int = 64,
    state: str | Path | None = None,
    advance: Callable[[], object] = lambda: None,
) -> Tuned:
    """The best setting of a method for a model, a budget and samples of one's own, without labels.

        tuned = foveate.tune(vlm, [("a.png", "What is it?"), …], method="v2drop", tokens=64)
        tuned.save("mine.json")
        vlm.ask("b.png", "What is it?", method="mine.json")

    A small grid of settings is tried at one cost, for the answers that stay nearest to the full model's; with `search`
    as many more cut layers, ratios and settings as optuna suggests. Pictures are split: to search, to choose among the
    best, and to report with. Costs are counted from a setting's plan. MustDrop has none: its thresholds are solved by
    running the prompts of the pictures that are not reported.

    Args:
        model: A `VLM`; or a model of transformers, whose samples are then its inputs.
        samples: (media, question) pairs or prompts of `VLM.prepare`; or the model's inputs, batch 1. 45 pictures or
            more are good, 20 are the fewest that say something.
        method: The method, chain, or its name, such as "v2drop:metric=cosine": a setting that is given is not searched.
            Of a method that is no name, those are given that differ from the usual ones.
        given: Settings that stay, too, of a method that is no name; of a chain with their member's place, "1.metric".
        tokens: Mean vision tokens that a decoder layer processes.
        retention: The same as a share of the vision tokens, in (0, 1].
        flops: FLOPs to the first token, as a share of the full model's.
        kv: Bytes of the KV cache after the prompt, likewise.
        search: Settings to try beyond the small grid; it needs optuna, the extra `tune`.
        task: What the samples show, for the record.
        seed: Of the split and the search.
        workers: Processes that run pictures at once, each with a model of its own; for a `VLM` on a CPU.
        max_new_tokens: The longest answer of the full model.
        state: A folder in which what was tried is kept; with the same one a stopped search goes on.
        advance: Called after every step.

    Returns:
        The setting found and where it comes from; `save` writes it as a file that goes wherever a method's name does.

    Raises:
        BudgetError: If no setting meets the budget.
        InputError: If `state` belongs to another model or other samples.
        SettingError: If the budget, the samples or the method cannot be tuned.
        UnsupportedError: If a search is asked for, and optuna is not installed.
    """
    begun = time.monotonic()
    if workers < 1 or search < 0:
        raise SettingError(f"workers must be 1 or more, and search 0 or more; got {workers} and {search}.")
    if isinstance(method, str):
        given, method = naming.given(method), naming.parse(method)
    limit = Limit.of(tokens=tokens, retention=retention, flops=flops, kv=kv)
    inner = model.model if isinstance(model, VLM) else model
    name = model.name if isinstance(model, VLM) else _name_of(inner)
    pictures = grouped(model, samples)
    parts = split(pictures, seed)
    inputs = _digest_of(pictures)
    space, prices, reported = _priced(inner, method, limit, parts)
    space = left_to_search(space, method, given)
    start = published_point(method, space, prices, limit)
    kind = f"{inner.dtype} {inner.device.type} {inner.config._attn_implementation}"
    with open_trials(
        model,
        pictures,
        max_new_tokens,
        state=None if state is None else Path(state),
        origin=f"{name} {max_new_tokens} {kind} {versions()} {inputs}",
        workers=workers,
        advance=advance,
    ) as trials:
        tried: list[Tried] = []
        for one in searched(
            space,
            start or usual_point(method, space, prices),
            lambda point: solved(space, point, prices, limit.value),
            lambda setting: trials.score(setting, parts.search),
            search,
            seed,
        ):
            tried.append(one)
            advance()
        if not tried:
            raise BudgetError(f"No setting of {method.name} meets {limit}. Give a budget that is easier to meet.")
        published = None if start is None else solved(space, start, prices, limit.value)
        choice = chosen(trials, [one for one in tried if one.whole], published, parts)
        rows = comparison(trials, reported, parts.report, choice)
        unspent = 1 - prices.of(choice.method) / limit.value if space.solved_for == "threshold" else 0.0
        told = _notes(parts, unspent)
        notes = [*notes_on(pictures), *told, *remarks(trials, parts.report, choice)]
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
        questions=sum(len(about.samples) for about in pictures),
        inputs=inputs,
        seed=seed,
        tried=len(tried),
        runs=trials.runs,
        seconds=round(time.monotonic() - begun, 1),
        rows=tuple(rows),
        notes=tuple(notes),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _name_of(model: Any) -> str:
    """A model's hub id; of a local folder its name alone, since where it lies is nobody's business."""
    known = getattr(model.config, "name_or_path", "") or model.config.model_type
    return Path(known).name if Path(known).is_dir() else str(known)


def _digest_of(pictures: Sequence[About]) -> str:
    """SHA-256 of all samples: of the pictures' keys, and of each question's ids."""
    questions = {}
    for about in pictures:
        for place, sample in enumerate(about.samples):
            questions[f"{about.key}/{place}"] = sample.inputs["input_ids"]
    return digest(questions)


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


def _notes(parts: Split, unspent: float) -> list[str]:
    notes = []
    if unspent > NEAR:
        notes.append(
            f"The setting leaves {unspent:.1%} of the budget: with more samples the mean changes in smaller steps."
        )
    if len(parts.choose) < FEWEST:
        notes.append(
            f"only {len(parts.choose)} pictures are left to choose with, too few: the published schedule stays; "
            "where there is none, the best of the small grid is taken. Give 17 pictures or more."
        )
    return notes
