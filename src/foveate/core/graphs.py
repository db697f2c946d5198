"""Loops of many small kernels as one CUDA graph, for which the host launches once what it launched a thousand times."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, ParamSpec

import torch
from torch import Tensor

from foveate.core.tensors import BLOCK_NUMBERS

P = ParamSpec("P")
MOST = 16
"""Graphs that are remembered, the latest: each holds its tensors, at the most some blocks of them."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A captured loop: what is copied into `given` before it runs, and the tensor that it leaves its answer in."""

    captured: torch.cuda.CUDAGraph
    given: tuple[Tensor, ...]
    made: Tensor


_graphs: OrderedDict[Any, Graph | None] = OrderedDict()  # None: seen once
_lock = Lock()


def graphed(loop: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function on CUDA as one graph from the second time on that it gets tensors of the same shapes.

    The same kernels run on the same numbers, so the same bits come out. It must make one tensor of tensors and plain
    values, without reading any. On other devices, under `torch.func.vmap`, for large tensors, in somebody's own capture
    or compilation, and where gradients are wanted, it runs as it is.
    """

    @functools.wraps(loop)
    def run(*args: P.args, **named: P.kwargs) -> Tensor:
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            return loop(*args, **named)
        values = (*args, *named.values())
        tensors = tuple(value for value in values if isinstance(value, Tensor))
        if not all(value is None or isinstance(value, (Tensor, int, float)) for value in values) or not _fit(tensors):
            return loop(*args, **named)
        stream = torch.cuda.current_stream(tensors[0].device)
        key = loop, stream, tuple(named), *(_kind(value) for value in values)
        with _lock:  # else another thread's copies come between this one's
            if key in _graphs:
                graph = _graphs[key] or _captured(functools.partial(_called, loop, args, named), tensors)
                _remember(key, graph)
                for place, value in zip(graph.given, tensors, strict=True):
                    place.copy_(value)
                graph.captured.replay()
                return graph.made.clone()
            _remember(key, None)
        return loop(*args, **named)

    return run


def _fit(tensors: tuple[Tensor, ...]) -> bool:
    """Whether these tensors may be copied into a graph."""
    if not tensors or any(one.device.type != "cuda" or one.numel() > BLOCK_NUMBERS for one in tensors):
        return False
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return False
    wrapped = any(torch._C._functorch.is_batchedtensor(one) for one in tensors)
    return not wrapped and not (torch.is_grad_enabled() and any(one.requires_grad for one in tensors))


def _kind(value: Any) -> Any:
    """What must be alike for two values to go through one graph."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value


def _remember(key: Any, graph: Graph | None) -> None:
    _graphs[key] = graph
    _graphs.move_to_end(key)
    while len(_graphs) > MOST:
        _graphs.popitem(last=False)


def _called(loop: Callable[..., Tensor], args: Any, named: Any, given: tuple[Tensor, ...]) -> Tensor:
    """What the loop makes of the same arguments, with these tensors in the places of its own."""
    places = iter(given)
    args = [next(places) if isinstance(value, Tensor) else value for value in args]
    return loop(*args, **{name: next(places) if isinstance(one, Tensor) else one for name, one in named.items()})


@torch.inference_mode(False)
@torch.no_grad()
def _captured(call: Callable[[tuple[Tensor, ...]], Tensor], tensors: tuple[Tensor, ...]) -> Graph:
    """Capture a call on copies of these tensors, on a stream of its own, as CUDA asks for."""
    device = tensors[0].device
    current, own = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    given = tuple(one.clone() for one in tensors)
    graph = torch.cuda.CUDAGraph()
    own.wait_stream(current)
    # Not torch.cuda.graph: it waits for the device and empties the allocator's cache.
    with torch.cuda.stream(own):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            made = call(given)
        finally:
            graph.capture_end()
    current.wait_stream(own)
    return Graph(graph, given, made)
