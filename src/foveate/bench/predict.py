"""What arithmetic says before anything runs: whether dropping pays for a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

from foveate.cost import Cost

__all__ = ["Forecast", "forecast", "verdict"]

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


def forecast(cost: Cost, whole: Cost, batch: int = 1, device: str = "cpu") -> Forecast:
    """What a method's cost promises over the untouched model's, both of one sample."""
    mine, full = _bound(cost, batch, device), _bound(whole, batch, device)
    around = whole.tower_flops + whole.projector_flops + whole.head_flops
    own = cost.tower_flops + cost.projector_flops + cost.head_flops + cost.scoring_flops
    return Forecast(
        prefill=whole.prefill_flops / cost.prefill_flops,
        bound=full / mine,
        first=(full + around) / (mine + own),
        kv=whole.kv_bytes / cost.kv_bytes if cost.kv_bytes else 1.0,
    )


def _bound(cost: Cost, batch: int, device: str) -> float:
    """FLOPs of the prefill, a layer of few rows counted as one at the ridge."""
    ridge = RIDGE.get(device, RIDGE["cuda"])
    rows = [batch * (cost.text_tokens + tokens) for tokens in cost.tokens]
    return sum(flops * max(1.0, ridge / n) for flops, n in zip(cost.layer_flops, rows, strict=True) if n)


def verdict(forecasts: Mapping[str, Forecast], whole: Cost) -> str:
    """One sentence for all rows: whether dropping pays for this prompt."""
    if not forecasts:
        return "What these methods leave depends on the picture: arithmetic cannot tell before they run."
    name, best = max(forecasts.items(), key=lambda pair: pair[1].first)
    vision = sum(whole.vision_tokens) / (sum(whole.vision_tokens) + whole.text_tokens)
    tower = (whole.tower_flops + whole.projector_flops) / whole.total_flops
    said = f"{best.first:.2f} times faster to the first token at most ({name}), {best.bound:.2f} in the prefill"
    if best.bound < 0.9 * best.prefill:
        said += f" where its FLOPs fall {best.prefill:.2f} times, since so few rows leave the time of reading weights"
    why = f"{vision:.0%} of the prompt's rows are vision tokens and the tower takes {tower:.0%} of the FLOPs"
    if best.first < LITTLE:
        return f"Dropping hardly pays for this prompt: {said}; {why}."
    return f"Dropping {'pays a little' if best.first < SOME else 'pays'} for this prompt: {said}; {why}."
