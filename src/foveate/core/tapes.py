"""CUDA graphs: the kernels of a call, recorded and replayed without Python in between."""

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveate.core.patching import Patcher
from foveate.errors import SettingError

T = TypeVar("T")
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
        lanes: The lane of each stream, on which its kernels are recorded. A new stream's is added. Tapes of one stream
            share a lane, because no two of its graphs run at once.
    """

    def __init__(self, device: torch.device, lanes: dict[Any, Lane]) -> None:
        stream = stream_of(device)
        self._lane = lanes.get(stream) or lanes.setdefault(stream, Lane(device))
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
                results = call()
                self._graph.capture_end()
            except BaseException:
                lane.heal(self._graph, uses)
                raise
            finally:
                if collects:
                    gc.enable()
        return results

    def replay(self) -> None:
        """Run the kernels again on the current contents of their input memory."""
        self._graph.replay()


@contextmanager
def as_if_capturing() -> Iterator[None]:
    """Let this thread choose as in a capture, in which transformers reads no mask: so that it runs the same kernels."""
    thread = threading.get_ident()
    with _pretends, Patcher() as patches:
        capturing = torch.cuda.is_current_stream_capturing  # read in turn: before, it may be another thread's pretence
        patches.put(torch.cuda, "is_current_stream_capturing", lambda: threading.get_ident() == thread or capturing())
        yield


TAPES = {"cuda": GraphTape}
"""The recorder for each type of device."""


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


@dataclass(slots=True, eq=False)
class Recording:
    """A recorded call.

    Attributes:
        tape: Its kernels.
        inputs: The tensors that they read; a new call's values are copied into them.
        tensors: The tensors that they write.
    """

    tape: GraphTape
    inputs: Sequence[Tensor]
    tensors: Sequence[Tensor]

    def replay(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Run the kernels on these inputs. Returns what they write, in new tensors."""
        torch._foreach_copy_(self.inputs, inputs)  # type: ignore[arg-type]
        self.tape.replay()
        fresh = [torch.empty_like(tensor) for tensor in self.tensors]
        torch._foreach_copy_(fresh, self.tensors)  # type: ignore[arg-type]
        return fresh


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


@torch.inference_mode(False)
@torch.no_grad()
def copies_of(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Copies of tensors that may be written to in any mode."""
    return tuple([tensor.clone() for tensor in tensors])
