"""What arithmetic says before anything runs: whether dropping pays for a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate.bench.workload import Workload
from foveate.contract.method import Method
from foveate.cost import Cost
from foveate.errors import SettingError

__all__ = ["Forecast", "forecast", "forecasts", "verdict"]

RIDGE = {"cpu": 8, "cuda": 250}
"""Rows below which a layer's time is that of reading its weights, not of its FLOPs: a device's FLOP/s over its bytes/s.

Two FLOPs a weight and row against its two bytes (four on a CPU): some 200 rows on an H200, 300 on an H100, 160 on an
A100; a few on a CPU core.
"""
LITTLE, SOME = 1.1, 1.5  # speed-ups to the first token below which dropping hardly pays, and pays a little


@dataclass(frozen=True, slots=True)
class Forecast:
    """Speed-ups by arithmetic.

    Attributes:
        prefill: Of the decoder's FLOPs over the prompt.
        bound: The same where a layer with few rows still has to read its weights.
        first: From the pixels to the first token, with that bound.
        kv: How many times smaller the cache is.
    """

    prefill: float
    bound: float
    first: float
    kv: float


def forecasts(
    model: Any, workload: Workload, methods: Mapping[str, Method], kernel: str, device: str
) -> dict[str, Forecast]:
    """What arithmetic promises, by name, of each method whose counts depend on neither picture nor question.

    Args:
        model: A model or its config.
        workload: The prompt.
        methods: By name.
        kernel: The attention implementation.
        device: The type of the device.
    """
    untouched = workload.kernel_cost(model, kernel)
    promised = {}
    for name, method in methods.items():
        try:
            cost = workload.kernel_cost(model, kernel, method)
        except SettingError:  # the picture decides
            continue
        promised[name] = forecast(cost, untouched, workload.batch, device)
    return promised


def forecast(cost: Cost, untouched: Cost, batch: int = 1, device: str = "cpu") -> Forecast:
    """What a method's cost promises over the untouched model's, both of one sample."""
    bound, untouched_bound = _bound(cost, batch, device), _bound(untouched, batch, device)
    outside = cost.tower_flops + cost.projector_flops + cost.head_flops + cost.scoring_flops
    untouched_outside = untouched.tower_flops + untouched.projector_flops + untouched.head_flops
    return Forecast(
        prefill=untouched.prefill_flops / cost.prefill_flops,
        bound=untouched_bound / bound,
        first=(untouched_bound + untouched_outside) / (bound + outside),
        kv=untouched.kv_bytes / cost.kv_bytes if cost.kv_bytes else 1.0,
    )


def _bound(cost: Cost, batch: int, device: str) -> float:
    """FLOPs of the prefill, a layer of few rows counted as one at the ridge."""
    ridge = RIDGE.get(device, RIDGE["cuda"])
    total = 0.0
    for flops, tokens in zip(cost.layer_flops, cost.tokens, strict=True):
        rows = batch * (cost.text_tokens + tokens)
        if rows:
            total += flops * max(1.0, ridge / rows)
    return total


def verdict(forecasts: Mapping[str, Forecast], untouched: Cost) -> str:
    """One sentence: whether dropping pays for this prompt."""
    if not forecasts:
        return "How many tokens these methods leave depends on the picture: arithmetic cannot tell before they run."
    name, best = max(forecasts.items(), key=lambda item: item[1].first)
    vision_tokens = sum(untouched.vision_tokens)
    vision = vision_tokens / (vision_tokens + untouched.text_tokens)
    tower = (untouched.tower_flops + untouched.projector_flops) / untouched.total_flops
    speed = f"at most {best.first:.2f} times faster to the first token ({name}), {best.bound:.2f} times in the prefill"
    if best.bound < 0.9 * best.prefill:
        speed += f" (its FLOPs fall {best.prefill:.2f} times, but with so few rows reading the weights takes longer)"
    why = f"{vision:.0%} of the prompt are vision tokens and the tower takes {tower:.0%} of the FLOPs"
    return f"Dropping {_pays(best.first)} for this prompt: {speed}; {why}."


def _pays(speed_up: float) -> str:
    if speed_up < LITTLE:
        return "hardly pays"
    if speed_up < SOME:
        return "pays a little"
    return "pays"
