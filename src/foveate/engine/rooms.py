"""Decode: keys and values with free places behind them, so that decoded rows are written without copying the others.

A long layer has a room of its own. Recorded steps keep all rooms in memory that the graphs of a model share. This is
lent to one cache at a time; the previous cache moves out.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_STEP = 16
"""Most rows of a call for which a room is used: a decoding step, possibly with guesses, but not a prompt."""


class Room:
    """A layer's keys and values, and free places behind them.

    A room serves one layer; a copy of the layer has none. It is valid only while the layer holds the very tensors it
    got from here. A reorder replaces them, and then a new room is made, so no row is written that another layer may
    still read. Removed rows free their places, unless a copy of the layer reads them.

    Args:
        keys, values: The current rows, (samples, heads, rows, head size) each.
        memory: Memory to use, (samples, heads, places, head size) each; None: the room allocates its own.

    Attributes:
        lent: Whether the memory will be another cache's later.
        looked_at: Whether a copy may read the current rows.
    """

    looked_at = False

    def __init__(self, keys: Tensor, values: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> None:
        self.lent = memory is not None
        if memory is None:
            places = keys.shape[-2] + max(4 * MOST_STEP, keys.shape[-2] // 8)
            of_keys, of_values = (one.new_empty(*one.shape[:2], places, one.shape[-1]) for one in (keys, values))
            memory = of_keys, of_values
        self._keys, self._values = memory
        if self.lent:  # a step multiplies free places by a weight of 0, which for inf or NaN would not give 0
            self._keys[..., keys.shape[-2] :, :] = 0
            self._values[..., keys.shape[-2] :, :] = 0
        self._filled = 0
        self._rows: Tensor | None = None  # kept alive so that no other tensor gets its id
        self.put(keys, values)

    @property
    def places(self) -> int:
        """Number of places, free ones included."""
        return self._keys.shape[-2]

    def has_place(self, coming: int) -> bool:
        """Return whether `coming` more rows fit."""
        return coming <= self.places - self._filled

    def put(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows, (samples, heads, rows, head size) each, and return all."""
        start, end = self._filled, self._filled + keys.shape[-2]
        self._keys[..., start:end, :] = keys
        self._values[..., start:end, :] = values
        return self.grow(end - start)

    def put_at(self, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows at these places, (rows,) int64, and return what is at all places."""
        return self._keys.index_copy_(2, places, keys), self._values.index_copy_(2, places, values)

    def grow(self, rows: int) -> tuple[Tensor, Tensor]:
        """Count `rows` rows that were already written behind the others, and return all rows."""
        self._filled += rows
        return self.rows()

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return all rows, as a layer holds them."""
        self._rows = self._keys[..., : self._filled, :]
        return self._rows, self._values[..., : self._filled, :]

    def gives_back(self, keys: Tensor, rows: int) -> bool:
        """Free the places of the last rows, if the layer holds these `keys` from here and no copy reads them."""
        if keys is not self._rows or self.looked_at or torch.is_grad_enabled():
            return False
        self._filled -= rows
        return True


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
        self._rooms: list[Room] = []
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
    def fill(self, cache: Any, places: Sequence[int]) -> list[Room]:
        """Return rooms of these sizes, filled with the rows of a cache of pruned layers. Previous layers move out."""
        for tenant in self._tenants:
            layer = tenant()
            if layer is not None:
                layer.move_out()
        self._tenants, self._rooms = [], []
        for index, (layer, count) in enumerate(zip(cache.layers, places, strict=True)):
            keys, values = layer.states
            memory = [
                room[: _numbers(rows, count)].view(*rows.shape[:2], count, rows.shape[-1])
                for room, rows in zip(self._memory[index], (keys, values), strict=True)
            ]
            self._rooms.append(Room(keys, values, (memory[0], memory[1])))
        return self._rooms

    def lend(self, cache: Any, places: Sequence[int]) -> None:
        """Move the rows of a pruned cache into these rooms. `places` has the number of places of each layer's room."""
        is_let = len(self._tenants) == len(cache.layers)
        if is_let and [room.places for room in self._rooms] == list(places):
            rooms = zip(cache.layers, self._tenants, self._rooms, strict=True)
            if all(tenant() is layer and layer.is_in(room) for layer, tenant, room in rooms):
                return
        for layer, room in zip(cache.layers, self.fill(cache, places), strict=True):
            layer.move_in(room)
            self._tenants.append(weakref.ref(layer))


def _numbers(rows: Tensor, places: int) -> int:
    """Return how many numbers `places` places need for rows of shape (samples, heads, slots, head size)."""
    samples, heads, _, size = rows.shape
    return samples * heads * places * size
