"""Decode: a cache layer whose rows are in the memory of recorded steps."""

from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import Change
from foveate.engine import rooms
from foveate.engine.lives.bare import PrunedLayer
from foveate.engine.rooms import Room


class TenantLayer(PrunedLayer):
    """A layer whose keys and values are in a room that another cache will have later. It takes the layer's place.

    Replays write rows there, and nobody asks for them. A change of the rows, other than that rows are added or taken
    from the end, gives the place back. A copy is a layer with rows of its own.

    Args:
        layer: The layer.
        room: It has the layer's rows.
    """

    _room: Room

    def __init__(self, layer: PrunedLayer, room: Room) -> None:
        others = ("keys", "values", "head")
        self.__dict__ = {name: value for name, value in vars(layer).items() if name not in others}
        self._room = room

    @property
    def keys(self) -> Tensor:
        """(samples, heads, slots, head size)."""
        return self._room.rows()[0]

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        self.leave_room()
        self.keys = keys

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        return self._room.rows()[1]

    @values.setter
    def values(self, values: Tensor) -> None:
        self.leave_room()
        self.values = values

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Copy as a layer with rows of its own."""
        return PrunedLayer.__new__, (PrunedLayer,), vars(self._out(*map(torch.clone, self._room.rows())))

    def leave_room(self) -> None:
        """Give the place back to a layer with rows of its own, because the memory will be another cache's."""
        self.give_place_to(self._out(*map(torch.clone, self._room.rows())))

    def follow(self, change: Change, rows: bool = True, reorders: bool = False) -> None:
        """As of `PrunedLayer`, of which it is one then."""
        self.leave_room()
        self.follow(change, rows, reorders)

    def reset(self) -> None:
        self.leave_room()
        self.reset()

    def _append(self, key_states: Tensor, value_states: Tensor) -> None:
        coming = key_states.shape[-2]
        if coming <= min(rooms.MOST_STEP, self._room.free) and not torch.is_grad_enabled():
            self._room.put(key_states, value_states)
        else:
            self.give_place_to(self._out(*self._room.rows()))  # rows that come are appended to a copy
            self._append(key_states, value_states)

    def _cut_tail(self, rows: int) -> None:
        if not self._room.gives_back(self, rows):
            self.leave_room()
            self._cut_tail(rows)

    def _store(self, keys: Tensor, values: Tensor) -> None:
        self.give_place_to(self._out(keys, values))

    def _out(self, keys: Tensor, values: Tensor) -> PrunedLayer:
        """Return a layer that holds these rows, and else what this one holds."""
        return PrunedLayer.of({**vars(self), "_room": None, "keys": keys, "values": values})
