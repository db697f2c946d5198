"""Tensors, whatever they hold: sent to a device, picked along a dimension, changed or stacked in a nest, made once."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor


def send(numbers: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the host on `device`, without a wait for what the device still has to do.

    CUDA stages what it is given before the call returns; Metal may not.
    """
    return numbers.to(device, non_blocking=device.type != "mps")


def take_along(tensor: Tensor, places: Tensor, dim: int) -> Tensor:
    """As `torch.take_along_dim`, for places from 0 on: without a copy of all places to wrap negative ones.

    An example: (samples, rows, width) and places (samples, few, 1), dim=1 -> (samples, few, width).
    """
    sizes, indices = list(tensor.shape), list(places.shape)
    # All dimensions but this one are broadcast against each other.
    sizes[dim] = indices[dim] = 1
    common = list(torch.broadcast_shapes(sizes, indices))  # type: ignore[no-untyped-call]
    common[dim] = tensor.shape[dim]
    source = tensor.expand(common)
    common[dim] = places.shape[dim]
    return source.gather(dim, places.expand(common))


Change = Callable[[Tensor], Tensor]
"""Makes another tensor of one."""
Tensors = dict[str, Any]
"""Tensors by name; an entry may itself be tensors by name."""


def on_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """A nest with every tensor changed; None stays None.

    Args:
        value: A tensor, None, or a tuple or mapping of such.
        change: Called with every tensor.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(on_tensors(part, change) for part in value)
    return {name: on_tensors(part, change) for name, part in value.items()}


def stacked(samples: Sequence[Any]) -> Any:
    """Tensors of samples, or nests of them by name, with the samples in front; those of one sample are not copied."""
    first = samples[0]
    if not isinstance(first, Tensor):
        return {name: stacked([sample[name] for sample in samples]) for name in first}
    if len(samples) == 1:
        return first[None]
    return torch.stack(list(samples))


BLOCK_NUMBERS = 1 << 20  # numbers of a block where rows meet all others: 4 MiB in float32, less than a layer needs


def blocks(rows: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows a few at a time, as views, for what has so many `columns` a row meanwhile: memory grows with rows alone."""
    return torch.split(rows, max(1, BLOCK_NUMBERS // max(1, columns)))


def alike(kinds: Iterable[Hashable]) -> list[list[int]]:
    """The places of those that are of one kind: of a b a they are 0 2 and 1."""
    places: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    return list(places.values())


T = TypeVar("T")
PLAIN = (str, int, tuple, torch.device)


@dataclass(slots=True, eq=False)
class Memo:
    """Remembers what was made for which key.

    A key is made of tensors and other objects, which are compared as objects, and of names, numbers and devices, which
    are compared by value.

    Args:
        limit: How many are remembered, the latest; None: all.
    """

    limit: int | None = None
    _made: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = field(default_factory=dict, init=False)

    def once(self, make: Callable[[], T], *key: Any) -> T:
        """What `make` answers, or answered before for the same key."""
        alike = tuple([(type(part), part) if isinstance(part, PLAIN) else id(part) for part in key])
        entry = self._made.get(alike)
        if entry is None:
            entry = self._made[alike] = key, make()  # the key lives on, so that its ids stay its own
            if self.limit is not None and len(self._made) > self.limit:
                del self._made[next(iter(self._made))]
        made: T = entry[1]
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, whose objects have other ids, remembers nothing."""
        return Memo, (self.limit,)
