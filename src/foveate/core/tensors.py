"""Helpers for tensors: send to a device, keep autocast off, gather, map over or stack nests, split into blocks."""

import functools
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
from torch import Tensor

from foveate.errors import UnsupportedError

P = ParamSpec("P")
T = TypeVar("T")

SEEDING = RLock()
"""Held while torch's generators are seeded."""


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor to `device` without waiting for the work queued there.

    CUDA stages the data before the call returns. Metal may not, so there the copy blocks.
    """
    return numbers.to(device, non_blocking=device.type != "mps")


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators, and restore them: the CPU's, and the accelerators' for a device that is one.

    They are shared by all threads, so one thread is inside at a time.
    """
    devices, kind, sow = range(torch.accelerator.device_count()), device.type, torch.manual_seed
    if kind in ("cpu", "meta"):
        devices, kind, sow = range(0), "cuda", torch.default_generator.manual_seed
    with SEEDING, torch.random.fork_rng(devices, device_type=kind):
        sow(seed)
        yield


def without_autocast(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function with autocast off, which would round products of float32 to half precision."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        kinds = [kind for kind in _device_types() if torch.is_autocast_enabled(kind)]
        if not kinds:
            return function(*args, **kwargs)
        with ExitStack() as off:
            for kind in kinds:
                off.enter_context(torch.autocast(kind, enabled=False))
            return function(*args, **kwargs)

    return run


@functools.cache
def _device_types() -> tuple[str, ...]:
    """The types of this machine's devices that have autocast."""
    accelerator = torch.accelerator.current_accelerator()
    types = ("cpu",) if accelerator is None else ("cpu", accelerator.type)
    return tuple(kind for kind in types if torch.amp.is_autocast_available(kind))


def without_gradient(values: Tensor) -> Tensor:
    """Return values that a checkpointed module computed without gradients. A loss that depends on them is refused.

    Picks may read them. As the weights of a merge they would lose their part of the gradient.
    """
    leaf = values.detach().requires_grad_(values.is_floating_point())
    if leaf.requires_grad:
        leaf.register_hook(_refuse_gradient)  # type: ignore[no-untyped-call]
    return leaf


def _refuse_gradient(gradient: Tensor) -> NoReturn:
    raise UnsupportedError(
        "This method merges tokens by weights that a checkpointed module computed, and gradients of these weights are "
        "lost there. Use non-reentrant checkpointing (gradient_checkpointing_kwargs={'use_reentrant': False}), train "
        "without checkpointing or with that module frozen, or use a method that does not weight by attention."
    )


def take_along(tensor: Tensor, places: Tensor, dim: int) -> Tensor:
    """Like `torch.take_along_dim`, for places from 0 on. It does not copy all places to wrap negative ones.

    Example: (samples, rows, width) and places (samples, few, 1), dim=1 -> (samples, few, width).
    """
    sizes, indices = list(tensor.shape), list(places.shape)
    # Broadcast all dimensions except `dim` against each other.
    sizes[dim] = indices[dim] = 1
    common = list(torch.broadcast_shapes(sizes, indices))  # type: ignore[no-untyped-call]
    common[dim] = tensor.shape[dim]
    source = tensor.expand(common)
    common[dim] = places.shape[dim]
    return source.gather(dim, places.expand(common))


PLAIN_VALUES = (str, int, float, bool, type(None), torch.dtype, torch.device)
"""Kinds of values that never change, and are compared by value."""

Change = Callable[[Tensor], Tensor]
"""A function from tensor to tensor."""


def on_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a nest with every tensor changed. None remains None.

    Args:
        value: A tensor, None, or a tuple or mapping of these.
        change: Called with every tensor.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(on_tensors(part, change) for part in value)
    return {name: on_tensors(part, change) for name, part in value.items()}


BLOCK_NUMBERS = 1 << 20  # numbers in a block of a rows x columns product: 4 MiB in float32, less than a layer needs


def blocks(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Split rows into views of a few rows each, for computations with `columns` numbers a row.

    Then memory grows only with the number of rows.
    """
    return torch.split(rows, max(1, BLOCK_NUMBERS // max(1, columns)))


def alike(kinds: Iterable[Hashable]) -> list[list[int]]:
    """Group equal kinds, and return the places of each: b a b gives 0 2 and 1."""
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return list(places.values())


PLAIN = (str, int, tuple, torch.device)


@dataclass(slots=True, eq=False)
class Memo:
    """Remembers results by key.

    A key consists of tensors and other objects, which are compared by identity, and of names, numbers and devices,
    which are compared by value.

    Args:
        limit: How many results are remembered; the oldest is dropped. None: no limit.
    """

    limit: int | None = None
    _made: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = field(default_factory=dict, init=False)

    def once(self, make: Callable[[], T], *key: Any) -> T:
        """Return the result of `make`, or the remembered result for this key."""
        alike = tuple([(type(part), part) if isinstance(part, PLAIN) else id(part) for part in key])
        entry = self._made.get(alike)
        if entry is None:
            entry = self._made[alike] = key, make()  # keep the key alive, so that its ids are not reused
            if self.limit is not None and len(self._made) > self.limit:
                self._made.pop([*self._made][0], None)  # noqa: RUF015 one step, which threads cannot interrupt
        result: T = entry[1]
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without results, because the objects of a copy have other ids."""
        return Memo, (self.limit,)
