"""CUDA graphs of loops: the host launches one graph instead of a thousand kernels."""

import functools
import gc
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from foveate.core.patching import Patcher
from foveate.core.tensors import BLOCK_NUMBERS
from foveate.errors import SettingError

P = ParamSpec("P")
T = TypeVar("T")
MOST = 16
"""How many graphs of loops are cached, least recently used first out. Each holds its tensors, at most a few blocks."""
OURS = ("foveate", "transformers")
"""Packages in which a reader looks for the cause of a failed capture."""
_failed: list[Any] = []  # graphs whose capture failed: torch's allocator of pinned memory may still ask them
_pretends = threading.RLock()


class Lane:
    """A stream on which graphs are captured, and the memory that these share. No two of them may run at the same time.

    Args:
        device: The device whose kernels are captured.

    Attributes:
        memory: A `torch.cuda.MemPool`. It stays usable when its last graph has gone.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            self.memory: Any = torch.cuda.MemPool()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Launch kernels on this stream: behind those of the current stream, which then waits for them."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def heal(self, graph: Any, uses: int) -> None:
        """After a capture that failed, leave memory and random numbers as other captures need them.

        torch ends neither if CUDA refuses the capture.

        Args:
            graph: The graph.
            uses: How many users the memory had before.
        """
        memory, self.memory = self.memory, torch.cuda.MemPool()
        _failed.append(graph)
        name = "_cuda_endAllocateToPool"
        if not hasattr(torch._C, name):
            name = "_cuda_endAllocateCurrentStreamToPool"  # of torch 2.6
        for end in (
            graph.capture_end,
            lambda: getattr(torch._C, name)(self._device.index, memory.id),
            graph.reset,
            self._capture_nothing,
        ):
            with suppress(Exception):
                end()
        if memory.use_count() > uses:
            torch._C._cuda_releasePool(self._device.index, memory.id)

    def _capture_nothing(self) -> None:
        """Capture a kernel. In older torch, random numbers fail after a failed capture, until another one ends."""
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=self._device)
        graph.capture_end()


class GraphTape:
    """The kernels of a call, recorded as a CUDA graph that replays without Python in between.

    Args:
        device: The device whose kernels are recorded.
        lane: Where they are recorded. None: on a lane of its own.
    """

    def __init__(self, device: torch.device, lane: Lane | None = None) -> None:
        self._lane = lane or Lane(device)
        self._memory: Any = None
        self._graph = torch.cuda.CUDAGraph()

    def __del__(self) -> None:
        with suppress(Exception):
            self._graph.reset()  # before its memory goes

    @torch.inference_mode(False)
    @torch.no_grad()
    def run(self, call: Callable[[], T]) -> T:
        """Run a call as `record` will, but without a capture. Libraries then choose kernels and allocate workspaces."""
        with self._lane.entered(), as_if_capturing():
            return call()

    @torch.inference_mode(False)
    @torch.no_grad()
    def record(self, call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Capture a call on a separate stream, as CUDA requires. No kernel runs. Call `run` before.

        A replay writes its results into the tensors that this returns.

        Raises:
            RuntimeError: If the call reads a value on the host, or copies one to the device.
        """
        lane, collects = self._lane, gc.isenabled()
        self._memory, uses = lane.memory, lane.memory.use_count()
        # torch.cuda.graph is not used: it synchronises and empties the allocator's cache.
        with lane.entered():
            gc.disable()  # a graph that has died must not be destroyed in a capture
            try:
                self._graph.capture_begin(self._memory.id, capture_error_mode="thread_local")
                made = call()
                self._graph.capture_end()
            except BaseException:
                lane.heal(self._graph, uses)
                raise
            finally:
                if collects:
                    gc.enable()
        return made

    def replay(self) -> None:
        """Run the kernels again on the current contents of their input memory."""
        self._graph.replay()


@contextmanager
def as_if_capturing() -> Iterator[None]:
    """Let this thread choose as in a capture, in which transformers reads no mask: so that it runs the same kernels."""
    thread, capturing = threading.get_ident(), torch.cuda.is_current_stream_capturing
    with _pretends, Patcher() as patches:
        patches.put(torch.cuda, "is_current_stream_capturing", lambda: threading.get_ident() == thread or capturing())
        yield


TAPES = {"cuda": GraphTape}
"""The recorder for each type of device."""


def tape_on(device: torch.device, lanes: dict[Any, Lane]) -> GraphTape:
    """Return a new tape. Tapes of one stream share a lane, because no two of its graphs run at once.

    Args:
        device: Where it records.
        lanes: The lane of each stream. A new stream's is added.
    """
    lane, stream = None, stream_of(device)
    if stream is not None:
        lane = lanes.get(stream) or lanes.setdefault(stream, Lane(device))
    return TAPES[device.type](device, lane)


def stream_of(device: torch.device) -> Any:
    """Return the current stream, which orders launched kernels; None on a CPU."""
    if device.type == "cuda":
        return torch.cuda.current_stream(device)
    return None


def line_of(error: BaseException) -> str:
    """Format the class and the first line of an error, and where in foveate or transformers it was raised."""
    where = ""
    for frame, line in walk_tb(error.__traceback__):
        if str(frame.f_globals.get("__name__")).partition(".")[0] in OURS:
            where = f" at {Path(frame.f_code.co_filename).name}:{line}"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}{where}"


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


_graphs: OrderedDict[Any, Graph | str | None] = OrderedDict()  # None: seen once; a text: why it cannot be captured
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
            if isinstance(graph, Graph):
                for place, value in zip(graph.given, tensors, strict=True):
                    place.copy_(value)
                graph.tape.replay()
                return graph.made.clone()
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


def remember(table: "OrderedDict[Any, Any]", key: Any, value: Any, most: int) -> list[Any]:
    """Store an entry as the most recent one. Remove the oldest if there are more than `most`, and return their keys."""
    table[key] = value
    table.move_to_end(key)
    return [table.popitem(last=False)[0] for _ in range(len(table) - most)]


def _capture(loop: Callable[..., Tensor], args: Sequence[Any], named: dict[str, Any]) -> Graph | str:
    """Capture a call on copies of its tensors. Returns the reason if that fails, and warns the first time."""
    values = (*args, *named.values())
    try:
        tensors = copies_of([value for value in values if isinstance(value, Tensor)])
        places = iter(tensors)
        copies = [next(places) if isinstance(value, Tensor) else value for value in values]
        positional, by_name = copies[: len(args)], dict(zip(named, copies[len(args) :], strict=True))
        tape = tape_on(tensors[0].device, _lanes)
        tape.run(lambda: loop(*positional, **by_name))
        (made,) = tape.record(lambda: (loop(*positional, **by_name),))
        return Graph(tape, tensors, made)
    except Exception as error:
        why = line_of(error)
    if not any(isinstance(graph, str) for graph in _graphs.values()):
        warnings.warn(f"A loop runs without a CUDA graph, which is slower: {why}.", stacklevel=3)
    return why


@torch.inference_mode(False)
@torch.no_grad()
def copies_of(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of tensors that may be written to in any mode."""
    return tuple([tensor.clone() for tensor in tensors])
