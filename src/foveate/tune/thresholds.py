"""MustDrop's γ for a budget, by bisection on samples of one's own."""

import dataclasses
import statistics
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from foveate._versions import versions
from foveate.contract.budget import Budget
from foveate.contract.method import Method
from foveate.engine.session import drop
from foveate.errors import BudgetError, SettingError
from foveate.methods.mustdrop import MustDrop
from foveate.tune.record import WITHIN, Record
from foveate.tune.samples import digest

__all__ = ["model_name", "tune_thresholds"]

STEPS = 24


def tune_thresholds(
    model: Any,
    samples: Iterable[Mapping[str, Any]],
    *,
    method: Method | None = None,
    tokens: float | None = None,
    retention: float | None = None,
    task: str = "",
    advance: Callable[[], object] | None = None,
) -> Record:
    """Find MustDrop's γ, at a fixed κ = α/γ, for a mean retention over samples of one's own.

        record = foveate.tune(model, samples, retention=1 / 3, task="receipts")
        record.save("receipts.json")
        with foveate.drop(model, record.method):
            model.generate(**inputs)

    Later cuts depend on earlier ones, so every step runs the prefill of every sample. There are about twelve steps.

    Args:
        model: A model of a supported family.
        samples: The model's inputs, one dictionary per sample, all held in memory. Use 64 or more.
        method: The setting to start from, for its κ and everything but the thresholds; by default MustDrop's with
            the cuts scaled to the model's depth.
        tokens: Mean vision tokens that a decoder layer processes, averaged over the samples.
        retention: The same as a share of the vision tokens, in (0, 1].
        task: What the samples show, for the record.
        advance: Called after each step.

    Returns:
        The setting found, and where it comes from.

    Raises:
        BudgetError: If no γ reaches the budget; the message names what the samples allow.
        SettingError: If the method needs no tuning, or there is no sample.

    Warns:
        UserWarning: If no setting found meets the budget within 1 %; the record, `met` false, is then of the nearest.
    """
    start = _start(method)
    batches = list(samples)
    if not batches:
        raise SettingError("There are no samples to tune on. Give at least one.")
    found, counts = _retentions(model, batches, dataclasses.replace(start, global_thr=0.0, individual_thr=0.0))
    usual = round(statistics.fmean(counts))
    budget = Budget(tokens, retention)
    target = budget.retention or budget.mean(usual) / usual
    gamma, alpha = start.thresholds
    kappa, most = alpha / gamma, statistics.fmean(found)
    gamma, low, high = 0.0, 1 / (50 * max(counts)), 1.0
    steps, best = [(gamma, most)], (gamma, found)
    if target > most * (1 + WITHIN):
        raise BudgetError(
            f"The budget is {target:.1%}, but these samples average only {most:.1%} after merging in the tower, even "
            "with every other token kept. Give a smaller budget, or tune MustDrop(merge_windows=False)."
        )
    while abs(steps[-1][1] - target) > WITHIN * target and len(steps) <= STEPS:
        gamma = (low * high) ** 0.5 if len(steps) > 1 else high  # the far end first: it tells whether there is a way
        found, _ = _retentions(model, batches, _with(start, gamma, kappa))
        steps.append((gamma, statistics.fmean(found)))
        if abs(steps[-1][1] - target) < abs(statistics.fmean(best[1]) - target):
            best = gamma, found
        if advance is not None:
            advance()
        if len(steps) == 2 and steps[-1][1] > target * (1 + WITHIN):
            raise BudgetError(
                f"The budget is {target:.1%}, but the key tokens alone average {steps[-1][1]:.1%} on these samples. "
                "Give a larger budget, or tune MustDrop(key_rate=…) with a lower rate or earlier pruning_layers."
            )
        low, high = (gamma, high) if steps[-1][1] > target else (low, gamma)
    gamma, found = best
    record = Record(
        method=_with(start, gamma, kappa),
        model=model_name(model),
        task=task,
        samples=len(found),
        inputs=digest(*batches),
        target=target,
        retention=statistics.fmean(found),
        spread=statistics.stdev(found) if len(found) > 1 else 0.0,
        vision_tokens=statistics.fmean(counts),
        steps=tuple(steps),
        versions=versions(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if record.note:
        warnings.warn(record.note, stacklevel=2)
    return record


def model_name(model: Any) -> str:
    """A model's hub id; of a local folder its name alone, since where it lies is nobody's business."""
    known = getattr(model.config, "name_or_path", "") or model.config.model_type
    return Path(known).name if Path(known).is_dir() else str(known)


def _start(method: Method | None) -> MustDrop:
    method = method or MustDrop()
    if not isinstance(method, MustDrop):
        raise SettingError(
            f"{type(method).__name__} needs no tuning: {type(method).__name__}.for_budget solves its schedule."
        )
    if not method.filter or method.thresholds[0] <= 0:
        raise SettingError("Tuning changes global_thr of the filter, so it needs filter=True and global_thr above 0.")
    return dataclasses.replace(method, retention=None, tokens=None)


def _with(method: MustDrop, gamma: float, kappa: float) -> MustDrop:
    return dataclasses.replace(method, global_thr=gamma, individual_thr=gamma * kappa)


def _retentions(model: Any, batches: list[Mapping[str, Any]], method: MustDrop) -> tuple[list[float], list[int]]:
    """Retention and vision tokens of every sample that has any."""
    retentions, counts = [], []
    for inputs in batches:
        with drop(model, method) as trace, torch.inference_mode():
            model(**{**inputs, "use_cache": False})
        for kept, count in zip(trace.retention, trace.vision_tokens, strict=True):
            if count:
                retentions.append(kept)
                counts.append(count)
    if not counts:
        raise SettingError("None of the samples has a vision token. Give samples with pictures.")
    return retentions, counts
