"""Where the time of a prompt goes, part by part, by torch's profiler."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from foveate._greedy import generate
from foveate.bench.around import ENCODERS, around
from foveate.registry import family_for

__all__ = ["PARTS", "profiled"]

PREFIX = "foveate part: "
PARTS = ("tower and projector", "attention", "MLP", "norms", "around the layers", "head", "rest")
"""Around the layers: residuals, and all that dropping does: scoring, gathering rows, writing them back, masks."""
OPERATORS = 10


def profiled(model: Any, inputs: Mapping[str, Any], runs: int = 3) -> tuple[dict[str, float], dict[str, float]]:
    """Profile the way from the pixels to the first token, after a run of warm-up.

    To be called inside the dropping context. Time is the accelerator's where there is one, else the CPU's.

    Returns:
        Seconds of a run in each of `PARTS`, and in each of the operators that take most, what they call apart.
    """
    cuda = model.device.type == "cuda"
    generate(model, inputs, 1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _labelled(model), profile(activities=activities, acc_events=True) as found:
        for _ in range(runs):
            with record_function(f"{PREFIX}all"):
                generate(model, inputs, 1)
    parts: dict[str, float] = {}
    operators: dict[str, float] = {}
    for event in found.key_averages():
        name = str(event.key)
        if name.startswith(PREFIX):
            spent = event.device_time_total if cuda else event.cpu_time_total
            part = name.removeprefix(PREFIX)  # an accelerator has a second entry of this name, without children
            parts[part] = max(parts.get(part, 0.0), spent / 1e6 / runs)
        elif name.startswith("aten::"):
            spent = event.self_device_time_total if cuda else event.self_cpu_time_total
            operators[name.removeprefix("aten::")] = spent / 1e6 / runs
    inside = sum(parts.get(part, 0.0) for part in ("attention", "MLP", "norms"))
    parts["around the layers"] = parts.pop("layers", 0.0) - inside
    whole = parts.pop("all")
    parts["rest"] = whole - sum(parts.values())
    most = sorted(operators, key=lambda name: -operators[name])[:OPERATORS]
    return {part: parts.get(part, 0.0) for part in PARTS}, {name: operators[name] for name in most}


@contextmanager
def _labelled(model: Any) -> Iterator[None]:
    """Name the parts for the profiler."""
    family = family_for(model)
    with ExitStack() as stack:
        label = partial(record_function, f"{PREFIX}tower and projector")
        stack.enter_context(around(family.core, ENCODERS, label))
        if (head := model.get_output_embeddings()) is not None:
            stack.enter_context(_hooked(head, "head"))
        for layer in family.layers:
            stack.enter_context(_hooked(layer, "layers"))
            for name, child in layer.named_children():
                part = "norms" if "norm" in name else "MLP" if "mlp" in name or "moe" in name else "attention"
                stack.enter_context(_hooked(child, part))
        yield


@contextmanager
def _hooked(module: nn.Module, part: str) -> Iterator[None]:
    """A label around a module's forward; hooks see it from outside whatever else stands around it."""
    open_labels: list[Any] = []

    def enter(*_: Any) -> None:
        open_labels.append(record_function(f"{PREFIX}{part}"))
        open_labels[-1].__enter__()

    def leave(*_: Any) -> None:
        open_labels.pop().__exit__(None, None, None)

    handles = module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
