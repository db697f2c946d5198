"""What a prompt processes and holds: tokens, the cache, and the most bytes that live at once."""

import gc
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate._transformers import PreTrainedModel, cache_in
from foveate.ask.answer import kv_bytes
from foveate.ask.generation import generate
from foveate.bench.workload import Workload
from foveate.cost import RunCounts
from foveate.engine.trace import Trace
from foveate.registry import family_for


@dataclass(frozen=True, slots=True)
class Held:
    """What a candidate processes and holds.

    Attributes:
        tokens: Vision tokens each decoder layer processes: of the sample with most, to which a batch is padded.
        retention: Mean over samples of what the trace says.
        kv_bytes: Of the whole batch's cache after the prompt, read off its tensors.
        peak: Bytes at the most, without weights and inputs: what CUDA's allocator says, elsewhere the tensors that
            live at once.
        ran: What `foveate.cost` has to know of the run: `tokens`, and of the tower's run that of the sample with most.
    """

    tokens: tuple[int, ...]
    retention: float
    kv_bytes: int
    peak: int
    ran: RunCounts


def hold(model: PreTrainedModel, workload: Workload, trace: Trace | None) -> Held:
    """Run the prompt once and see what it holds; inside the dropping context whose trace is given, if any."""
    if model.device.type == "cuda":
        cache, peak = _prefill_on_cuda(model, workload)
    else:  # another accelerator's allocator cannot be asked for its peak, but its tensors can be counted as well
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


def _prefill_on_cuda(model: PreTrainedModel, workload: Workload) -> tuple[Any, int]:
    """The cache after the prompt, and the most bytes that lived at once."""
    generate(model, workload.inputs, 1)  # libraries take their workspaces once, and keep them
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    cache = cache_in(generate(model, workload.inputs, 1))
    return cache, torch.cuda.max_memory_allocated() - before


class Memory(TorchDispatchMode):
    """Notes the most bytes that live at once, of tensors made inside: neither weights nor inputs.

    Counted operator by operator, since a CPU's allocator does not tell. What a kernel takes and gives back inside
    itself is not seen.

    Attributes:
        peak: The most bytes that lived at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        before = {_key(tensor) for tensor in tensors_of((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for tensor in tensors_of(result):
            if _key(tensor) not in before:  # else a view, or written in place
                self.add(tensor, function)
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result

    def add(self, tensor: Tensor, function: object) -> None:
        """A tensor with a storage of its own has come to be by an operator."""
        storage = tensor.untyped_storage()
        self._live[_key(tensor)] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]


def tensors_of(tree: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int:
    """What tensors of one storage share."""
    key: int = tensor.untyped_storage()._cdata
    return key
