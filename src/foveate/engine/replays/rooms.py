"""Decode: the memory in which recorded steps keep the keys and values of all layers.

The graphs of a model share it. It is lent to one cache at a time; the previous cache moves out.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import DynamicLayer
from foveate.engine.cache import PrunedLayer
from foveate.engine.rooms import Room


class LentRoom(Room):
    """A layer's room in memory that another cache will have later.

    Args:
        keys, values: The current rows, (samples, heads, rows, head size) each.
        memory: The memory, (samples, heads, places, head size) each.
    """

    def __init__(self, keys: Tensor, values: Tensor, memory: tuple[Tensor, Tensor]) -> None:
        self._keys, self._values = memory
        # A step multiplies free places by a weight of 0, which for inf or NaN would not give 0.
        self._keys[..., keys.shape[-2] :, :] = 0
        self._values[..., keys.shape[-2] :, :] = 0
        self._filled = 0
        self.put(keys, values)

    def put_at(self, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows at these places, (rows,) int64, and return what is at all places."""
        return self._keys.index_copy_(2, places, keys), self._values.index_copy_(2, places, values)

    def copies(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies, because the memory will be another cache's."""
        return keys.clone(), values.clone()

    def holds(self, layer: PrunedLayer) -> bool:
        """Return whether the rows of a layer are here."""
        return layer._room is self and id(layer.keys) == layer._grown

    def move_in(self, layer: PrunedLayer) -> None:
        """Let a layer use the rows, which are already here."""
        layer.keys, layer.values = self.rows()
        layer._room, layer._grown, layer.head = self, id(layer.keys), None

    def move_out(self, layer: PrunedLayer) -> None:
        """Let a layer keep its rows in memory of its own."""
        if layer._room is self:
            layer.keys, layer.values = self.copies(layer.keys, layer.values)
            layer._room = None


class RecordedLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer of a recorded step.

    Args:
        room: Where new rows go.
        places: Their places there, (rows,) int64.
        seen: See `PrunedLayer`.
    """

    def __init__(self, room: LentRoom, places: Tensor, seen: int) -> None:
        super().__init__()
        self._room, self._places, self._seen = room, places, seen

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values of new rows, (samples, heads, rows, head size) each, and return all of the room."""
        return self._room.put_at(self._places, key_states, value_states)

    def get_seq_length(self) -> int:
        """Return the unpruned length when it was recorded."""
        return self._seen


def grow(cache: Any, rows: int) -> None:
    """Count `rows` rows that a replay has written into the rooms of a cache's layers."""
    for layer in cache.layers:
        layer.keys, layer.values = layer._room.grow(rows)
        layer._grown, layer.seen = id(layer.keys), layer.seen + rows


def columns_of(layer: PrunedLayer, places: int) -> Tensor | None:
    """Return the columns of the first `places` slots, counting future ones, (samples, places) int64.

    None if each slot's column is its index.
    """
    if layer.base is None and layer.base_end == 0:
        return None
    keys = layer.keys
    alike = "places", layer.base, layer.base_end, places
    return layer._memo.once(lambda: layer.columns(places - layer.slots, len(keys), keys.device), *alike)


class Rooms:
    """Memory of all layers' rooms. It grows with the largest cache and is lent to one cache at a time.

    Args:
        device: Where recordings run.

    Attributes:
        generation: How often memory was allocated. Recordings of an earlier generation write to memory no longer read.
        numbers: 0 1 2 …, (places,) int64. A slice of it gives the places of new rows.
    """

    def __init__(self, device: torch.device) -> None:
        self.generation = 0
        self.numbers = torch.zeros(0, dtype=torch.int64, device=device)
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self._rooms: list[LentRoom] = []
        self._tenants: list[Callable[[], Any]] = []  # weak references to the layers whose rows are here

    @property
    def memory(self) -> list[Tensor]:
        """All tensors of the memory, (numbers,) each."""
        return [self.numbers, *(states for pair in self._memory.values() for states in pair)]

    @torch.inference_mode(False)
    @torch.no_grad()
    def reserve(self, cache: Any, places: Sequence[int]) -> None:
        """Allocate memory for `places` places in each of a cache's layers, if needed."""
        if max(places) > len(self.numbers):
            self.numbers = torch.arange(max(places), device=self.numbers.device)
            self.generation += 1
        for index, (layer, count) in enumerate(zip(cache.layers, places, strict=True)):
            memory = self._memory.get(index, ())
            wanted = [(rows, _numbers(rows, count)) for rows in (layer.keys, layer.values)]
            fits = [
                room.dtype == rows.dtype and len(room) >= size
                for room, (rows, size) in zip(memory, wanted, strict=False)
            ]
            if not fits or not all(fits):
                keys, values = [rows.new_empty(size) for rows, size in wanted]
                self._memory[index] = keys, values
                self.generation += 1

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self, cache: Any, places: Sequence[int]) -> list[LentRoom]:
        """Return rooms of these sizes, filled with the rows of a cache of pruned layers. Previous layers move out."""
        for tenant, room in zip(self._tenants, self._rooms, strict=False):
            layer = tenant()
            if layer is not None:
                room.move_out(layer)
        self._tenants, self._rooms = [], []
        for index, (layer, count) in enumerate(zip(cache.layers, places, strict=True)):
            keys, values = layer.states
            memory = [
                room[: _numbers(rows, count)].view(*rows.shape[:2], count, rows.shape[-1])
                for room, rows in zip(self._memory[index], (keys, values), strict=True)
            ]
            self._rooms.append(LentRoom(keys, values, (memory[0], memory[1])))
        return self._rooms

    def lend(self, cache: Any, places: Sequence[int]) -> None:
        """Move the rows of a pruned cache into these rooms. `places` has the number of places of each layer's room."""
        is_let = len(self._tenants) == len(cache.layers)
        if is_let and [room.places for room in self._rooms] == list(places):
            rooms = zip(cache.layers, self._tenants, self._rooms, strict=True)
            if all(tenant() is layer and room.holds(layer) for layer, tenant, room in rooms):
                return
        for layer, room in zip(cache.layers, self.fill(cache, places), strict=True):
            room.move_in(layer)
            self._tenants.append(weakref.ref(layer))


def _numbers(rows: Tensor, places: int) -> int:
    """Return how many numbers `places` places need for rows of shape (samples, heads, slots, head size)."""
    samples, heads, _, size = rows.shape
    return samples * heads * places * size
