"""What arithmetic says before anything runs: whether dropping pays for a prompt."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate._sheet import Sheet
from foveate.bench.workload import Workload
from foveate.contract.method import Method
from foveate.cost import Cost
from foveate.errors import SettingError

__all__ = ["forecast", "forecast_sheet", "forecasts", "verdict"]

RIDGE = {"cpu": 8, "cuda": 250}
"""Rows below which a layer's time is that of reading its weights, not of its FLOPs: a device's FLOP/s over its bytes/s.

Two FLOPs a weight and row against its two bytes (four on a CPU): some 200 rows on an H200, 300 on an H100, 160 on an
A100; a few on a CPU core.
"""
LITTLE, SOME = 1.1, 1.5  # speed-ups to the first token below which dropping hardly pays, and pays a little


def forecasts(
    model: Any, workload: Workload, methods: Mapping[str, Method], kernel: str, device: str
) -> list[dict[str, Any]]:
    """A row for the untouched model, and one for each method whose counts depend on neither picture nor question.

    Args:
        model: A model or its config.
        workload: The prompt.
        methods: By name.
        kernel: The attention implementation.
        device: The type of the device.

    Returns:
        Columns as of `forecast`, behind a "name".
    """
    untouched = workload.kernel_cost(model, kernel)
    rows = [{"name": "untouched"} | forecast(untouched, untouched, workload.batch, device)]
    for name, method in methods.items():
        try:
            cost = workload.kernel_cost(model, kernel, method)
        except SettingError:  # the picture decides
            continue
        rows.append({"name": name} | forecast(cost, untouched, workload.batch, device))
    return rows


def forecast(cost: Cost, untouched: Cost, batch: int = 1, device: str = "cpu") -> dict[str, float]:
    """What a method's cost promises over the untouched model's, both of one sample.

    Returns:
        | column | meaning |
        |---|---|
        | tokens | mean vision tokens that a layer processes |
        | prefill_flops, kv_bytes | of one sample |
        | prefill_speed | how many times fewer FLOPs the decoder has over the prompt |
        | bound_speed | the same where a layer with few rows still has to read its weights |
        | first_speed | from the pixels to the first token, with that bound; scoring that is not counted is left out |
        | kv_ratio | how many times smaller the cache is |
    """
    bound, untouched_bound = _bound(cost, batch, device), _bound(untouched, batch, device)
    outside = cost.tower_flops + cost.projector_flops + cost.head_flops + (cost.scoring_flops or 0)
    untouched_outside = untouched.tower_flops + untouched.projector_flops + untouched.head_flops
    return {
        "tokens": sum(cost.tokens) / len(cost.tokens),
        "prefill_flops": cost.prefill_flops,
        "kv_bytes": cost.kv_bytes,
        "prefill_speed": untouched.prefill_flops / cost.prefill_flops,
        "bound_speed": untouched_bound / bound,
        "first_speed": (untouched_bound + untouched_outside) / (bound + outside),
        "kv_ratio": untouched.kv_bytes / cost.kv_bytes if cost.kv_bytes else 1.0,
    }


def _bound(cost: Cost, batch: int, device: str) -> float:
    """FLOPs of the prefill, a layer of few rows counted as one at the ridge."""
    ridge = RIDGE.get(device, RIDGE["cuda"])
    total = 0.0
    for flops, tokens in zip(cost.layer_flops, cost.tokens, strict=True):
        rows = batch * (cost.text_tokens + tokens)
        if rows:
            total += flops * max(1.0, ridge / rows)
    return total


def verdict(rows: Sequence[Mapping[str, Any]], untouched: Cost) -> str:
    """One sentence: whether dropping pays for this prompt.

    Args:
        rows: Of `forecasts`, the untouched model's first.
        untouched: What the prompt costs without dropping.
    """
    if len(rows) < 2:
        return "How many tokens these methods leave depends on the picture: arithmetic cannot tell before they run."
    best = max(rows[1:], key=lambda row: row["first_speed"])
    vision_tokens = sum(untouched.vision_tokens)
    vision = vision_tokens / (vision_tokens + untouched.text_tokens)
    tower = (untouched.tower_flops + untouched.projector_flops) / untouched.model_flops
    first, bound, prefill = best["first_speed"], best["bound_speed"], best["prefill_speed"]
    pays = "hardly pays" if first < LITTLE else "pays a little" if first < SOME else "pays"
    speed = f"at most {first:.2f} times faster to the first token ({best['name']}), {bound:.2f} times in the prefill"
    if bound < 0.9 * prefill:
        speed += f" (its FLOPs fall {prefill:.2f} times, but with so few rows reading the weights takes longer)"
    why = f"{vision:.0%} of the prompt are vision tokens and the tower takes {tower:.0%} of the FLOPs"
    return f"Dropping {pays} for this prompt: {speed}; {why}."


def forecast_sheet(rows: Sequence[Mapping[str, Any]], title: str, notes: Sequence[str] = ()) -> Sheet:
    """What arithmetic promises, a row a method."""
    heads = ("", "Tokens", "Prefill TFLOP", "KV MiB", "Prefill", "with weights read", "First token", "KV")
    lines = []
    for row in rows:
        cells = [row["name"], f"{row['tokens']:.1f}", f"{row['prefill_flops'] / 1e12:.3g}"]
        cells.append(f"{row['kv_bytes'] / 2**20:.1f}")
        if row is not rows[0]:
            speeds = ("prefill_speed", "bound_speed", "first_speed", "kv_ratio")
            cells += [f"{row[column]:.2f}×" for column in speeds]
        lines.append(cells)
    return Sheet(title, heads, lines, notes)
