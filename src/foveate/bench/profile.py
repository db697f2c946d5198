"""Where the time of a prompt goes, part by part, by torch's profiler."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from foveate.ask.generation import generate
from foveate.bench.encoders import around_encoders
from foveate.bench.run import Session
from foveate.core.patching import Patcher
from foveate.engine.session import drop_or_not
from foveate.registry import family_for

__all__ = ["PARTS", "Profile", "profiled", "profiles"]

PREFIX = "foveate part: "
PARTS = ("tower and projector", "attention", "MLP", "norms", "around the layers", "head", "rest")
"""Around the layers: residuals, and all that dropping does: scoring, gathering rows, writing them back, masks."""
OPERATORS = 10  # how many are listed

Profile = dict[str, dict[str, float]]
"""Seconds of "parts" and of "operators", by name."""


def profiles(session: Session, starting: Callable[[str], object] = lambda name: None) -> dict[str, Profile]:
    """Where the time goes, by name, of the untouched model and of every method of a session.

    Args:
        session: After its rounds.
        starting: Called with each name before it runs.
    """
    if session.model.device.type == "cpu":
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr when it begins and ends
    profiles: dict[str, Profile] = {}
    for candidate in session.candidates.values():
        if candidate.failed or not (candidate.is_untouched or candidate.control):
            continue
        starting(candidate.name)
        with drop_or_not(session.model, candidate.method):
            parts, operators = profiled(session.model, session.workload.inputs)
        profiles[candidate.name] = {"parts": parts, "operators": operators}
    return profiles


def profiled(model: Any, inputs: Mapping[str, Any], runs: int = 3) -> tuple[dict[str, float], dict[str, float]]:
    """Profile the way from the pixels to the first token, after a run of warm-up.

    To be called inside the dropping context. Time is the accelerator's where there is one, else the CPU's.

    Returns:
        Seconds of a run in each of `PARTS`; and in each of the operators that take most, without what they call.
    """
    cuda = model.device.type == "cuda"
    activities = [ProfilerActivity.CPU]
    if cuda:
        activities.append(ProfilerActivity.CUDA)
    generate(model, inputs, 1)
    with _labelled(model), profile(activities=activities, acc_events=True) as profiler:
        for _ in range(runs):
            with record_function(f"{PREFIX}all"):
                generate(model, inputs, 1)
    events = profiler.key_averages()
    return _parts(events, cuda, runs), _operators(events, cuda, runs)


def _parts(events: Any, cuda: bool, runs: int) -> dict[str, float]:
    seconds = dict.fromkeys(PARTS, 0.0)
    for event in events:
        name = str(event.key)
        if name.startswith(PREFIX):
            part = name.removeprefix(PREFIX)
            spent = event.device_time_total if cuda else event.cpu_time_total
            # An accelerator has a second entry of this name, without children.
            seconds[part] = max(seconds.get(part, 0.0), spent / 1e6 / runs)
    inside = seconds["attention"] + seconds["MLP"] + seconds["norms"]
    seconds["around the layers"] = seconds.pop("layers", 0.0) - inside
    everything = seconds.pop("all")
    seconds["rest"] = everything - sum(seconds.values())
    return seconds


def _operators(events: Any, cuda: bool, runs: int) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for event in events:
        name = str(event.key)
        if name.startswith("aten::"):
            spent = event.self_device_time_total if cuda else event.self_cpu_time_total
            seconds[name.removeprefix("aten::")] = spent / 1e6 / runs
    most = sorted(seconds.items(), key=lambda item: -item[1])
    return dict(most[:OPERATORS])


@contextmanager
def _labelled(model: Any) -> Iterator[None]:
    """Name the parts for the profiler."""
    family = family_for(model)
    head = model.get_output_embeddings()
    tower = partial(record_function, f"{PREFIX}tower and projector")
    with Patcher() as patches, around_encoders(family.core, tower):
        if head is not None:
            _label(patches, head, "head")
        for layer in family.layers:
            _label(patches, layer, "layers")
            for name, child in layer.named_children():
                _label(patches, child, _part_of(name))
        yield


def _part_of(name: str) -> str:
    """The part that a layer's module of this name belongs to."""
    if "norm" in name:
        return "norms"
    if "mlp" in name or "moe" in name:
        return "MLP"
    return "attention"


def _label(patches: Patcher, module: nn.Module, part: str) -> None:
    """Put a label around a module's forward; hooks see it from outside whatever else stands around it."""
    label = _Label(part)
    patches.hook(module, "before", label.enter, prepend=True)
    patches.hook(module, "after", label.leave)


class _Label:
    """The profiler's label of one module's calls."""

    def __init__(self, part: str) -> None:
        self._name = f"{PREFIX}{part}"
        self._open: list[Any] = []

    def enter(self, *_: Any) -> None:
        label: Any = record_function(self._name)
        self._open.append(label)
        label.__enter__()

    def leave(self, *_: Any) -> None:
        self._open.pop().__exit__(None, None, None)
