"""Decode: keys and values with free places behind them, so that a decoded row is written and the others stay.

A long layer has a room of its own. Recorded steps have all rooms in memory that the graphs of a model share: it is lent
to one cache at a time, and who had it before moves out.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MOST_STEP = 16
"""Rows of a call for which room is made: a step of decoding, also with guesses, and no prompt."""


class Room:
    """A layer's keys and values, and free places behind them.

    It serves one layer (a copy has none), and only while this holds the very tensors that it was given here: a reorder
    makes others, and then a new room is found, so that no row is written where somebody else may still look. Rows that
    are taken back give their places back, unless a copy of the layer looks at them.

    Args:
        keys, values: The rows that are there, (samples, heads, rows, head size) each.
        memory: Where they go, (samples, heads, places, head size) each; None: the room has memory of its own.

    Attributes:
        lent: Whether the memory will be another cache's.
        looked_at: Whether a copy may look at the rows that are there.
    """

    looked_at = False

    def __init__(self, keys: Tensor, values: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> None:
        self.lent = memory is not None
        if memory is None:
            places = keys.shape[-2] + max(4 * MOST_STEP, keys.shape[-2] // 8)
            of_keys, of_values = (one.new_empty(*one.shape[:2], places, one.shape[-1]) for one in (keys, values))
            memory = of_keys, of_values
        self._keys, self._values = memory
        if self.lent:  # a step reads free places too, with no weight: of a number that is not finite that is something
            self._keys[..., keys.shape[-2] :, :] = 0
            self._values[..., keys.shape[-2] :, :] = 0
        self._filled = 0
        self._rows: Tensor | None = None  # held, so that no other tensor has its id
        self.put(keys, values)

    @property
    def places(self) -> int:
        """How many there are, free ones among them."""
        return self._keys.shape[-2]

    def has_place(self, coming: int) -> bool:
        """Whether so many rows still go in."""
        return coming <= self.places - self._filled

    def put(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows behind the others, (samples, heads, rows, head size) each, and give all."""
        start, end = self._filled, self._filled + keys.shape[-2]
        self._keys[..., start:end, :] = keys
        self._values[..., start:end, :] = values
        return self.grow(end - start)

    def put_at(self, places: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write rows at these places, (rows,) int64, and give what is at all places."""
        return self._keys.index_copy_(2, places, keys), self._values.index_copy_(2, places, values)

    def grow(self, rows: int) -> tuple[Tensor, Tensor]:
        """All rows, with so many more that were written behind the others."""
        self._filled += rows
        return self.rows()

    def rows(self) -> tuple[Tensor, Tensor]:
        """All rows, as a layer holds them."""
        self._rows = self._keys[..., : self._filled, :]
        return self._rows, self._values[..., : self._filled, :]

    def gives_back(self, keys: Tensor, rows: int) -> bool:
        """Free the places of the last rows, if the layer holds these `keys` from here and nobody else looks at them."""
        if keys is not self._rows or self.looked_at or torch.is_grad_enabled():
            return False
        self._filled -= rows
        return True


class Rooms:
    """The memory of all layers' rooms, which grows with the largest cache and is lent to one at a time.

    Args:
        device: Where recordings run.

    Attributes:
        generation: How often memory was made: recordings of an earlier generation write where nobody reads.
        numbers: 0 1 2 …, (places,) int64: a slice of it says where rows go.
    """

    def __init__(self, device: torch.device) -> None:
        self.generation = 0
        self.numbers = torch.zeros(0, dtype=torch.int64, device=device)
        self._memory: dict[int, tuple[Tensor, Tensor]] = {}
        self._rooms: list[Room] = []
        self._tenants: list[Callable[[], Any]] = []  # the layers whose rows are here

    @property
    def memory(self) -> list[Tensor]:
        """All of it, (numbers,) each."""
        return [self.numbers, *(states for pair in self._memory.values() for states in pair)]

    @torch.inference_mode(False)
    @torch.no_grad()
    def reserve(self, cache: Any, places: Sequence[int]) -> None:
        """Have memory for so many places in each of a cache's layers."""
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
        """Rooms of so many places with the rows of a cache of pruned layers. Who was there moves out."""
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
        """Let a cache of pruned layers hold its rows here, with so many places."""
        is_let = len(self._tenants) == len(cache.layers)
        if is_let and [room.places for room in self._rooms] == list(places):
            rooms = zip(cache.layers, self._tenants, self._rooms, strict=True)
            if all([tenant() is layer and layer.is_in(room) for layer, tenant, room in rooms]):
                return
        for layer, room in zip(cache.layers, self.fill(cache, places), strict=True):
            layer.move_in(room)
            self._tenants.append(weakref.ref(layer))


def _numbers(rows: Tensor, places: int) -> int:
    """How many numbers there are in so many places for rows, (samples, heads, slots, head size)."""
    samples, heads, _, size = rows.shape
    return samples * heads * places * size
