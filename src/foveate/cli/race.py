"""The full model and methods timed against one another on one input."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch

from foveate._greedy import generate
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.cli.loading import Loaded
from foveate.cli.screen import counted
from foveate.engine.session import drop
from foveate.methods.base import Method

__all__ = ["Race", "race"]

FULL, AGAIN = "the full model", "the full model again"


@dataclass(frozen=True, slots=True)
class Race:
    """Times of a whole `generate` call over the full model's, on this machine, for this input.

    Attributes:
        ratios: One a method, by its name.
        control: The full model against itself: how far from 1 noise alone goes.
        new_tokens: How many tokens every run produced; fixed, so that no method wins by a short answer.
    """

    ratios: dict[str, Ratio]
    control: Ratio
    new_tokens: int


def race(loaded: Loaded, inputs: Any, methods: Mapping[str, Method], new_tokens: int, pairs: int) -> Race:
    """Time the full model twice and every method once a round, interleaved, in this process; `pairs` ≥ 2."""
    runs = {name: partial(_run, loaded.model, inputs, method, new_tokens) for name, method in methods.items()}
    whole = partial(_run, loaded.model, inputs, None, new_tokens)
    with counted("Timing, in rounds", pairs + 1) as progress:
        calls = {FULL: whole, **runs, AGAIN: whole}
        found = list(rounds(calls, pairs, after=lambda: progress.advance(progress.task_ids[0])))
    seconds = {name: [one[name] for one in found] for name in calls}
    return Race(
        ratios={name: ratio(seconds[name], seconds[FULL]) for name in methods},
        control=ratio(seconds[AGAIN], seconds[FULL]),
        new_tokens=new_tokens,
    )


def _run(model: Any, inputs: Any, method: Method | None, new_tokens: int) -> float:
    """Seconds of a whole call, the context included."""
    start = perf_counter()
    if method is None:
        generate(model, inputs, new_tokens, exactly=True)
    else:
        with drop(model, method):
            generate(model, inputs, new_tokens, exactly=True)
    if model.device.type != "cpu":
        torch.accelerator.synchronize()
    return perf_counter() - start
