"""Each layer, at once: a model's recordings, and the layouts that were seen of its calls."""

import threading
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.tapes import Lane, Recording, stream_of
from foveate.engine.extensions.replays.modules import Modules
from foveate.engine.extensions.replays.shared_rooms import Rooms
from foveate.registry import family_for

MOST_TAPES = 8
"""Most recordings of each kind per model; the oldest are discarded."""
ALIGNED = 512
"""Results begin at multiples of this many bytes, as torch's blocks do."""
MOST_SEEN = 256
"""How many layouts without a recording are tracked."""


@dataclass(slots=True, eq=False)
class RecordedRegion(Recording):
    """A recorded region.

    Attributes:
        made: The results that contain `tensors`, whose memory all recordings share.
        held: See `regions.Region`.
        replayed: Whether it was ever used.
    """

    made: Any
    held: Any
    replayed: bool = False


@dataclass(slots=True, eq=False)
class Layout:
    """Calls with one key.

    Attributes:
        why: Why they cannot be recorded; None if they can.
        wait: After how many calls without a graph the next one is recorded. Doubled when a recording was in vain.
        left: How many of these are left.
    """

    why: str | None = None
    wait: int = 1
    left: int = 1

    def lose(self, replayed: bool) -> None:
        """Begin to wait, because the recording is dropped."""
        self.wait = self.left = 1 if replayed else 2 * self.wait


class Tapes:
    """A model's recordings, by kind, then by key; its modules; and the layouts seen."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.clear()

    def clear(self) -> None:
        """Drop everything."""
        self.recordings: defaultdict[str, OrderedDict[Hashable, RecordedRegion]] = defaultdict(OrderedDict)
        self.seen: OrderedDict[Hashable, Layout] = OrderedDict()
        self.modules: dict[nn.Module, Modules] = {}
        self.lanes: dict[Any, Lane] = {}
        self._rooms: dict[Any, Rooms] = {}
        self._results: dict[Any, Tensor] = {}

    def rooms(self, device: torch.device) -> Rooms:
        """Return the memory for rows of this stream's steps."""
        stream = stream_of(device)
        return self._rooms.get(stream) or self._rooms.setdefault(stream, Rooms(device))

    @torch.inference_mode(False)
    @torch.no_grad()
    def memory_like(self, results: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        """Return memory for results, such as a KV cache. All recordings of a stream share it."""
        *starts, size = accumulate([-(-one.nbytes // ALIGNED) * ALIGNED for one in results], initial=0)
        stream = stream_of(device)
        memory = self._results.get(stream)
        if memory is None or memory.numel() < size:
            memory = self._results[stream] = torch.empty(size, dtype=torch.uint8, device=device)
        parts = [memory[start : start + one.nbytes].view(one.dtype) for start, one in zip(starts, results, strict=True)]
        strides = [torch.empty_like(one, device="meta").stride() for one in results]
        return [part.as_strided(one.shape, steps) for part, one, steps in zip(parts, results, strides, strict=True)]


_tapes: "weakref.WeakKeyDictionary[nn.Module, Tapes]" = weakref.WeakKeyDictionary()


def tapes_of(core: nn.Module) -> Tapes:
    """Return the recordings of the model with this core."""
    return _tapes.setdefault(core, Tapes())


def free_graphs(model: nn.Module) -> None:
    """Free the CUDA graphs of a model and their memory. Inside a context with `cuda_graphs`, recording begins anew.

    Args:
        model: The model, as for `foveate.drop`.
    """
    tapes = tapes_of(family_for(model).core)
    with tapes.lock:
        tapes.clear()
    torch.cuda.empty_cache()
