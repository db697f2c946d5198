"""Measure what a prompt costs in memory: vision tokens, the KV cache, and the peak of allocated bytes."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from foveate._transformers import PreTrainedModel, cache_in
from foveate.ask.answer import kv_bytes
from foveate.ask.generation import generate
from foveate.bench.workload import Workload
from foveate.cost import RunCounts
from foveate.engine.trace import Trace
from foveate.registry import family_for


@dataclass(frozen=True, slots=True)
class Held:
    """Vision tokens and memory of a candidate's prefill.

    Attributes:
        tokens: Vision tokens that each decoder layer processes, of the sample with most, to which a batch is padded.
        retention: The trace's retention, averaged over samples.
        kv_bytes: Bytes of the whole batch's KV cache after the prompt, summed over its tensors.
        peak: Peak of allocated bytes, without weights and inputs: on CUDA by its allocator, elsewhere by the tensors
            alive at the same time.
        ran: Measured counts for `foveate.cost`: `tokens`, and those of the tower for the sample with most.
    """

    tokens: tuple[int, ...]
    retention: float
    kv_bytes: int
    peak: int
    ran: RunCounts


def hold(model: PreTrainedModel, workload: Workload, trace: Trace | None) -> Held:
    """Run the prompt once and measure what it holds. Call it inside the `drop` context that yielded `trace`, if any."""
    if model.device.type == "cuda":
        generate(model, workload.inputs, 1)  # warm-up: libraries allocate their workspaces once and keep them
        torch.cuda.synchronize()
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        cache = cache_in(generate(model, workload.inputs, 1))
        peak = torch.cuda.max_memory_allocated() - before
    else:  # other accelerators report no peak, but their tensors can be counted
        with Memory() as memory:
            cache = cache_in(generate(model, workload.inputs, 1))
        peak = memory.peak
    tokens = (workload.vision_tokens,) * len(family_for(model).layers)
    retention, tower = 1.0, RunCounts()
    if trace is not None:
        tokens = tuple(max(samples) for samples in trace.latest.per_layer)
        retention = sum(trace.retention) / len(trace.retention)
        seen = [sum(map(len, images)) for images in trace.latest.tower_tokens]
        tower = trace.latest.ran(seen.index(max(seen)))
    return Held(tokens, retention, kv_bytes(cache)[0], peak, {**tower, "tokens": tokens})


class Memory(TorchDispatchMode):
    """Record the peak memory of tensors created inside this context; weights and inputs do not count.

    Counts storages operator by operator, because a CPU's allocator reports no peak. Memory that a kernel allocates and
    frees internally is not seen.

    Attributes:
        peak: The largest sum of bytes alive at the same time.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        before = {_key(tensor) for tensor in tensors_in((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for tensor in tensors_in(result):
            if _key(tensor) not in before:  # skip views and in-place results
                self.add(tensor, function)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result

    def add(self, tensor: Tensor, function: object) -> None:
        """Record a tensor that an operator created with a new storage."""
        storage = tensor.untyped_storage()
        self._live[_key(tensor)] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]


def tensors_in(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts. (Counting calls it for every operator, so without pytree.)"""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for part in tree for tensor in tensors_in(part)]


def _key(tensor: Tensor) -> int:
    """A key for a tensor's storage: equal for tensors that share it."""
    return int(tensor.untyped_storage()._cdata)
