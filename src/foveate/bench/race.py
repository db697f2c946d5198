"""The full model and methods timed against one another on one input."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch

from foveate.ask.generation import generate
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.contract.method import Method
from foveate.engine.session import drop

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

    @property
    def noisy(self) -> bool:
        """Whether the full model differs from itself: its interval does not hold 1."""
        return not self.control.low <= 1 <= self.control.high

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "noisy": self.noisy,
            "ratio_to_full": {name: ratio.to_dict() for name, ratio in self.ratios.items()},
            "control": self.control.to_dict(),
            "new_tokens": self.new_tokens,
        }


def race(
    model: Any,
    inputs: Mapping[str, Any],
    methods: Mapping[str, Method],
    new_tokens: int,
    pairs: int,
    after: Callable[[], object] = lambda: None,
) -> Race:
    """Time the full model twice and every method once a round, interleaved, in this process.

    Args:
        model: Of transformers.
        inputs: What it is given.
        methods: By name.
        new_tokens: The length of every answer.
        pairs: Rounds, 2 or more, after one of warm-up.
        after: Called after every round, that of warm-up included.
    """
    untouched = partial(_run, model, inputs, None, new_tokens)
    calls = {FULL: untouched}
    for name, method in methods.items():
        calls[name] = partial(_run, model, inputs, method, new_tokens)
    calls[AGAIN] = untouched
    times = list(rounds(calls, pairs, after=after))
    seconds = {name: [each[name] for each in times] for name in calls}
    return Race(
        ratios={name: ratio(seconds[name], seconds[FULL]) for name in methods},
        control=ratio(seconds[AGAIN], seconds[FULL]),
        new_tokens=new_tokens,
    )


def _run(model: Any, inputs: Mapping[str, Any], method: Method | None, new_tokens: int) -> float:
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
