"""Decode: the memory in which recorded steps keep the keys and values of all layers.

The graphs of a model share it. It is lent to one cache at a time; the previous cache moves out.
"""

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import DynamicLayer
from foveate.core.tensors import Change
from foveate.engine.cache import PrunedLayer, pruned_layer
from foveate.engine.lives.tenant import TenantLayer
from foveate.engine.rooms import Room

MORE = 64
"""Fewest places of a room, and the extra rows it has if the length of the answer has no known limit."""


@dataclass(slots=True, eq=False)
class SharedColumns:
    """What layers have in common whose rooms hold the same columns.

    Attributes:
        layers: Indices of the layers.
        places: Number of places in their rooms.
        columns: The unpruned column at each place, (samples, places) int64, −1 for a pad; None: the place itself.
        base, base_end, shift: See `PrunedLayer`.
        place: Where new rows go, (rows,) int64.
    """

    layers: list[int]
    places: int
    columns: Tensor | None
    base: Tensor | None
    base_end: int
    shift: Tensor | None
    place: Tensor

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that a recorded step reads."""
        return [tensor for tensor in (self.place, self.columns, self.shift) if tensor is not None]

    @property
    def layout(self) -> Hashable:
        """What two steps must have in common to run the same kernels."""
        return tuple(self.layers), self.places, self.columns is None, self.shift is None

    def mask(self, change: Change, numbers: Tensor, live: Tensor | None, like: Tensor | None) -> Tensor:
        """Return what new rows see, (samples or 1, 1, rows, places): bool, or an additive mask of `like`'s dtype."""
        # New rows at places 3 4 see places 0 to 3 and 0 to 4.
        seen = (numbers[: self.places] <= change(self.place)[:, None])[None]  # (1, rows, places)
        if self.columns is not None:
            columns = change(self.columns)
            there = columns >= 0
            if live is not None:
                there &= live.gather(1, columns.clamp(min=0, max=live.shape[1] - 1))
            seen = seen & there[:, None]
        elif live is not None:
            seen = seen & live[:, None, : self.places]
        if like is None:
            return seen[:, None]
        lowest = torch.finfo(like.dtype).min
        return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, lowest)[:, None]


class LentRoom(Room):
    """A layer's room in memory that another cache will have later.

    Args:
        layer: The layer. It is let the room by `Rooms.lend`.
        memory: The memory of keys and of values, (numbers,) each.
        shared: Says how many places the room has, and which columns are there.
    """

    def __init__(self, layer: PrunedLayer, memory: Sequence[Tensor], shared: SharedColumns) -> None:
        keys, values = layer.states
        self.layer, self.shared = weakref.ref(layer), shared
        self._keys, self._values = [
            room[: _numbers(rows, shared.places)].view(*rows.shape[:2], shared.places, rows.shape[-1])
            for room, rows in zip(memory, (keys, values), strict=True)
        ]
        # A step multiplies free places by a weight of 0, which for inf or NaN would not give 0.
        self._keys[..., keys.shape[-2] :, :] = 0
        self._values[..., keys.shape[-2] :, :] = 0
        self.filled = 0
        self.put(keys, values)

    def put_at(self, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows at these places, (rows,) int64, and return what is at all places."""
        return self._keys.index_copy_(2, places, keys), self._values.index_copy_(2, places, values)

    def serves(self, layer: Any) -> bool:
        """Return whether a layer's rows are here."""
        return getattr(layer, "_room", None) is self


class RecordedLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer of a recorded step.

    Args:
        room: Where new rows go.
        place: Their places there, (rows,) int64.
        seen: See `PrunedLayer`.
    """

    def __init__(self, room: LentRoom, place: Tensor, seen: int) -> None:
        super().__init__()
        self._room, self._place, self._seen = room, place, seen

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values of new rows, (samples, heads, rows, head size) each, and return all of the room."""
        return self._room.put_at(self._place, key_states, value_states)

    def get_seq_length(self) -> int:
        """Return the unpruned length when it was recorded."""
        return self._seen


class Rooms:
    """Memory of all layers' rooms. It grows with the largest cache and is lent to one cache at a time.

    Args:
        device: Where recordings run.

    Attributes:
        numbers: 0 1 2 …, (places,) int64. A slice of it gives the places of new rows.
        memory: The memory of each layer's keys (0) and values (1), (numbers,) each, by index and that number. Replaced
            by another dict when it grows, because earlier recordings write to memory that is no longer read.
    """

    def __init__(self, device: torch.device) -> None:
        self.numbers = torch.zeros(0, dtype=torch.int64, device=device)
        self.memory: dict[tuple[int, int], Tensor] = {}
        self._rooms: list[LentRoom] = []
        self._by_layer: list[SharedColumns] = []

    def are_let_to(self, cache: Any) -> bool:
        """Return whether the rows of a cache are here."""
        layers = getattr(cache, "layers", ())
        if not layers or len(layers) != len(self._rooms):
            return False
        for layer, room, shared in zip(layers, self._rooms, self._by_layer, strict=True):
            if not room.serves(layer) or layer.base is not shared.base:
                return False
            if layer.base_end != shared.base_end or layer.shift is not shared.shift:
                return False
        return True

    def plan(self, cache: Any, are_let: bool, rows: int, more: int) -> list[SharedColumns]:
        """Plan rooms for a cache and `rows` more rows, and allocate memory for them. No row moves.

        Args:
            cache: A cache whose layers hold rows. They become pruned layers.
            are_let: Whether its rows are here.
            rows: How many rows come now.
            more: How many rows a new room has places for.

        Returns:
            For each layer, what it shares with others.

        Raises:
            OutOfMemoryError: If there is no memory for rooms.
        """
        slots = {room.shared: room.filled for room in self._rooms}
        if are_let and all(room.filled == slots[room.shared] <= room.shared.places - rows for room in self._rooms):
            by_layer = self._by_layer
        else:
            slots, by_layer = {}, []
            groups: dict[Any, SharedColumns] = {}
            for index in range(len(cache.layers)):
                layer = pruned_layer(cache, index)
                places = power_of_two(max(MORE, layer.slots + more))
                base, end, shift = layer.base, layer.base_end, layer.shift
                alike = layer.slots, id(base), end, id(shift)
                if alike not in groups:
                    columns = None
                    if base is not None or end > 0:
                        columns = layer.columns(places - layer.slots, len(layer.keys), layer.keys.device)
                    groups[alike] = shared = SharedColumns([], places, columns, base, end, shift, self.numbers)
                    slots[shared] = layer.slots
                groups[alike].layers.append(index)
                by_layer.append(groups[alike])
            self._reserve(cache.layers, by_layer)
        for shared, first in slots.items():
            shared.place = self.numbers[first : first + rows]
        return by_layer

    @torch.inference_mode(False)
    @torch.no_grad()
    def _reserve(self, layers: Sequence[PrunedLayer], by_layer: Sequence[SharedColumns]) -> None:
        """Allocate memory for the rooms of these layers, if needed."""
        most, memory = max(shared.places for shared in by_layer), dict(self.memory)
        for index, (layer, shared) in enumerate(zip(layers, by_layer, strict=True)):
            for part, rows in enumerate((layer.keys, layer.values)):
                now, size = memory.get((index, part)), _numbers(rows, shared.places)
                if now is None or now.dtype != rows.dtype or len(now) < size:
                    memory[index, part] = rows.new_empty(size)
        if most > len(self.numbers):
            self.memory, self.numbers = memory, torch.arange(most, device=self.numbers.device)
        elif any(value is not self.memory.get(key) for key, value in memory.items()):
            self.memory = memory

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self, cache: Any, by_layer: list[SharedColumns]) -> list[LentRoom]:
        """Return rooms as planned, filled with the rows of a cache of pruned layers. Previous layers move out."""
        for room in self._rooms:
            layer = room.layer()
            if layer is not None and room.serves(layer):  # its rows get memory of their own
                layer.leave_room()
        memory = [[self.memory[index, 0], self.memory[index, 1]] for index in range(len(by_layer))]
        self._rooms = [LentRoom(*parts) for parts in zip(cache.layers, memory, by_layer, strict=True)]
        self._by_layer = by_layer
        return self._rooms

    def lend(self, cache: Any, by_layer: list[SharedColumns]) -> None:
        """Move the rows of a pruned cache into rooms as planned."""
        if by_layer is self._by_layer:  # the cache has these rooms: `plan` says this of no other cache's
            return
        for layer, room in zip(cache.layers, self.fill(cache, by_layer), strict=True):
            layer.give_place_to(TenantLayer(layer, room))

    def grow(self, cache: Any, rows: int) -> None:
        """Count `rows` rows that a replay has written into the rooms of a cache's layers."""
        for layer, room in zip(cache.layers, self._rooms, strict=True):
            room.filled, layer.seen = room.filled + rows, layer.seen + rows


def _numbers(rows: Tensor, places: int) -> int:
    """Return how many numbers `places` places need for rows of shape (samples, heads, slots, head size)."""
    samples, heads, _, size = rows.shape
    return samples * heads * places * size


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
