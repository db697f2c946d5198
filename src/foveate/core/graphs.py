"""CUDA graphs of loops: the host launches one graph instead of a thousand kernels."""

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, ParamSpec

import torch
from torch import Tensor

from foveate.core.tensors import BLOCK_NUMBERS
from foveate.errors import SettingError

P = ParamSpec("P")
MOST = 16
"""How many graphs of loops are cached, least recently used first out. Each holds its tensors, at most a few blocks."""


class GraphTape:
    """The kernels of a call, recorded as a CUDA graph that replays without Python in between.

    Args:
        device: The device whose kernels are recorded.
        pool: Memory shared by graphs that never run at the same time (`torch.cuda.graph_pool_handle`). None: its own.
    """

    def __init__(self, device: torch.device, pool: Any = None) -> None:
        self._device = device
        self._pool = pool
        self._graph = torch.cuda.CUDAGraph()

    @torch.inference_mode(False)
    @torch.no_grad()
    def record(self, call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Capture a call on a separate stream, as CUDA requires. No kernel runs.

        A replay writes its results into the tensors that this returns.

        Raises:
            RuntimeError: If the call reads a value on the host, or copies one to the device.
        """
        current = torch.cuda.current_stream(self._device)
        own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        own.wait_stream(current)
        # torch.cuda.graph is not used: it synchronises and empties the allocator's cache.
        with torch.cuda.stream(own):
            self._graph.capture_begin(self._pool, capture_error_mode="thread_local")
            try:
                made = call()
            finally:
                self._graph.capture_end()
        current.wait_stream(own)
        return made

    def replay(self) -> None:
        """Run the kernels again on the current contents of their input memory."""
        self._graph.replay()


TAPES = {"cuda": GraphTape}
"""The recorder for each type of device."""


def refuse_without_graphs(device: torch.device) -> None:
    """Refuse to run a model as CUDA graphs on a device that has none.

    Raises:
        SettingError: If the device has no CUDA graphs.
    """
    if device.type not in TAPES:
        raise SettingError(
            f"CUDA graphs need a model on a CUDA device; this one would run on {device}. Leave them out."
        )


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A captured loop: `given` are the tensors to copy inputs into, and `made` holds the result after a replay."""

    tape: GraphTape
    given: tuple[Tensor, ...]
    made: Tensor


_graphs: OrderedDict[Any, Graph | None] = OrderedDict()  # None: seen once
_lock = Lock()


def as_graph(loop: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a function on CUDA as one graph, from its second call with tensors of the same shapes on.

    The same kernels run on the same numbers, so the result is identical, bit for bit. The function must make one tensor
    from tensors and plain values, without reading any value. It runs eagerly on other devices, under `torch.func.vmap`,
    for large tensors, inside another capture or compilation, and if gradients are needed.
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
            if key in _graphs:
                graph = _graphs[key] or _capture(loop, args, named)
                remember(_graphs, key, graph, MOST)
                for place, value in zip(graph.given, tensors, strict=True):
                    place.copy_(value)
                graph.tape.replay()
                return graph.made.clone()
            remember(_graphs, key, None, MOST)
        return loop(*args, **named)

    return run


def _fit(tensors: tuple[Tensor, ...]) -> bool:
    """True if these tensors may be copied into a graph."""
    if not tensors or any(one.device.type != "cuda" or one.numel() > BLOCK_NUMBERS for one in tensors):
        return False
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return False
    wrapped = any(torch._C._functorch.is_batchedtensor(one) for one in tensors)
    return not wrapped and not (torch.is_grad_enabled() and any(one.requires_grad for one in tensors))


def kind_of_value(value: Any) -> Any:
    """A key that two values must share to use the same graph."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    return value


def remember(table: "OrderedDict[Any, Any]", key: Any, value: Any, most: int) -> None:
    """Store an entry as the most recent one, and remove the oldest if there are more than `most`."""
    table[key] = value
    table.move_to_end(key)
    while len(table) > most:
        table.popitem(last=False)


def _capture(loop: Callable[..., Tensor], args: Sequence[Any], named: dict[str, Any]) -> Graph:
    """Capture a call on copies of the tensors among its arguments."""
    values = (*args, *named.values())
    tensors = copies_of([value for value in values if isinstance(value, Tensor)])
    places = iter(tensors)
    copies = [next(places) if isinstance(value, Tensor) else value for value in values]
    positional, by_name = copies[: len(args)], dict(zip(named, copies[len(args) :], strict=True))
    tape = GraphTape(tensors[0].device)
    (made,) = tape.record(lambda: (loop(*positional, **by_name),))
    return Graph(tape, tensors, made)


@torch.inference_mode(False)
@torch.no_grad()
def copies_of(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of tensors that may be written to in any mode."""
    return tuple([tensor.clone() for tensor in tensors])
