"""CUDA graphs of loops: the host launches one graph instead of a thousand kernels."""

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor

from foveate.core.tapes import TAPES, Lane, Recording, copies_of, kind_of_value, line_of, remember
from foveate.core.tensors import BLOCK_NUMBERS
from foveate.plain.upstream import warn_caller

P = ParamSpec("P")
MOST = 16
"""How many graphs of loops are cached, least recently used first out. Each holds its tensors, at most a few blocks."""

_graphs: OrderedDict[Any, Recording | str | None] = OrderedDict()  # None: seen once; a text: why it cannot be captured
_lanes: dict[Any, Lane] = {}
_lock = threading.Lock()


def as_graph(loop: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function on CUDA as one graph, from its second call with tensors of the same shapes on.

    The same kernels run on the same numbers, so the result is identical, bit for bit. The function must make one tensor
    from tensors and plain values, without reading any value. It runs eagerly on other devices, under `torch.func.vmap`,
    for large tensors, inside another capture or compilation, if gradients are needed, and if its capture failed.
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
        key = loop, stream, tuple(named), *(kind_of_value(value) for value in values)
        with _lock:  # another thread must not copy its inputs in between
            graph = _graphs.get(key)
            if key in _graphs and graph is None:
                graph = _capture(loop, args, named)
            remember(_graphs, key, graph, MOST)
            if isinstance(graph, Recording):
                return graph.replay(tensors)[0]
        return loop(*args, **named)

    return run


def _fit(tensors: tuple[Tensor, ...]) -> bool:
    """True if these tensors may be copied into a graph."""
    if not tensors or any(tensor.device.type != "cuda" or tensor.numel() > BLOCK_NUMBERS for tensor in tensors):
        return False
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return False
    wrapped = any(torch._C._functorch.is_batchedtensor(tensor) for tensor in tensors)
    return not wrapped and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def _capture(loop: Callable[..., Tensor], args: Sequence[Any], named: dict[str, Any]) -> Recording | str:
    """Capture a call on copies of its tensors. Returns the reason if that fails, and warns the first time."""
    values = (*args, *named.values())
    try:
        tensors = copies_of([value for value in values if isinstance(value, Tensor)])
        places = iter(tensors)
        copies = [next(places) if isinstance(value, Tensor) else value for value in values]
        positional, by_name = copies[: len(args)], dict(zip(named, copies[len(args) :], strict=True))
        device = tensors[0].device
        tape = TAPES[device.type](device, _lanes)
        tape.run(lambda: loop(*positional, **by_name))
        return Recording(tape, tensors, tape.record(lambda: (loop(*positional, **by_name),)))
    except Exception as error:
        why = line_of(error)
    if not any(isinstance(graph, str) for graph in _graphs.values()):
        warn_caller(f"A loop runs without a CUDA graph, which is slower: {why}.")
    return why
