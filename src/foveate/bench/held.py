"""What a prompt processes and holds, measured before any timing."""

import gc
from dataclasses import dataclass
from typing import Any

import torch

from foveate.ask.cache import kv_bytes
from foveate.ask.generation import generate
from foveate.bench.memory import Memory
from foveate.bench.workload import Workload
from foveate.engine.trace import Trace
from foveate.registry import family_for

__all__ = ["Held", "hold"]


@dataclass(frozen=True, slots=True)
class Held:
    """What a candidate processes and holds.

    Attributes:
        tokens: Vision tokens each decoder layer processes: of the sample with most, to which a batch is padded.
        retention: Mean over samples of what the trace says.
        kv_bytes: Of the whole batch's cache after the prompt, read off its tensors.
        peak: Bytes at the most, without weights and inputs: what the accelerator's allocator says, or on a CPU the
            tensors that live at once; None if that was not measured.
    """

    tokens: tuple[int, ...]
    retention: float
    kv_bytes: int
    peak: int | None


def hold(model: Any, workload: Workload, trace: Trace | None, peak: bool = True) -> Held:
    """Run the prompt once and see what it holds; inside the dropping context whose trace is given, if any.

    Args:
        model: In evaluation mode.
        workload: The prompt.
        trace: Of what is dropped.
        peak: Whether to measure the most bytes at once, which on a CPU takes much longer than the prompt.
    """
    most: int | None = None
    if peak:
        cache, most = _prefill(model, workload)
    else:
        cache = generate(model, workload.inputs, 1).past_key_values
    tokens = (workload.vision_tokens,) * len(family_for(model).layers)
    retention = 1.0
    if trace is not None:
        tokens = tuple(max(samples) for samples in trace.latest.per_layer)
        retention = sum(trace.retention) / len(trace.retention)
    return Held(
        tokens=tokens,
        retention=retention,
        kv_bytes=kv_bytes(cache)[0],
        peak=most,
    )


def _prefill(model: Any, workload: Workload) -> tuple[Any, int]:
    """The cache after the prompt, and the most bytes that lived at once."""
    if model.device.type == "cuda":
        return _prefill_on_cuda(model, workload)
    memory = Memory()
    # Another accelerator's allocator cannot be asked for its peak, but its tensors can be counted as well.
    with memory:
        cache = generate(model, workload.inputs, 1).past_key_values
    return cache, memory.peak


def _prefill_on_cuda(model: Any, workload: Workload) -> tuple[Any, int]:
    generate(model, workload.inputs, 1)  # libraries take their workspaces once, and keep them
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    cache = generate(model, workload.inputs, 1).past_key_values
    return cache, torch.cuda.max_memory_allocated() - before
