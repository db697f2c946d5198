"""Decode: keys and values with free places behind them, so that decoded rows are written without copying the others."""

from typing import Any

import torch
from torch import Tensor

MOST_STEP = 16
"""Most rows of a call for which a room is used: a decoding step, possibly with guesses, but not a prompt."""


LONG = 1024
"""From this many slots on, a layer reserves an eighth more for decoded rows. Below, copying costs no more."""


class Room:
    """A long layer's keys and values, and free places behind them.

    Memory is reserved when rows come and find the layer's unchanged. A room serves one layer; a copy of the layer has
    none. It is valid only while the layer holds the very tensors it got from here. A reorder replaces them, and then a
    new room is made, so no row is written that another layer may still read. Removed rows free their places, unless a
    copy of the layer reads them.

    Args:
        keys: The current keys of the layer, (samples, heads, rows, head size).

    Attributes:
        filled: How many places are filled.
        looked_at: Whether a copy may read the current rows.
    """

    looked_at = False
    _keys: Tensor
    _values: Tensor

    def __init__(self, keys: Tensor) -> None:
        self._left: int = id(keys)
        self._rows: tuple[Tensor, Tensor] | None = None
        self.filled = 0

    def takes(self, layer: Any, rows: int) -> bool:
        """Return whether so many rows of a layer can be put here. Reserves memory if there are too few places."""
        if not self.serves(layer):
            return False
        if self._rows is None or rows > self.free:
            keys, values = layer.keys, layer.values
            places = keys.shape[-2] + max(4 * MOST_STEP, keys.shape[-2] // 8)
            self._keys, self._values = (one.new_empty(*one.shape[:2], places, one.shape[-1]) for one in (keys, values))
            self.looked_at, self.filled = False, 0
            self.put(keys, values)
        return True

    @property
    def free(self) -> int:
        """Number of rows that still have a place."""
        return self._keys.shape[-2] - self.filled

    def put(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append rows, (samples, heads, rows, head size) each, and return all."""
        start, end = self.filled, self.filled + keys.shape[-2]
        self._keys[..., start:end, :] = keys
        self._values[..., start:end, :] = values
        self.filled = end
        return self.rows()

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return all rows, as a layer holds them."""
        # A narrow takes half the host's time of an index.
        self._rows = self._keys.narrow(-2, 0, self.filled), self._values.narrow(-2, 0, self.filled)
        return self._rows

    def serves(self, layer: Any) -> bool:
        """Return whether a layer holds the very rows that it got from here, or that it had when this was made."""
        if self._rows is None:
            is_equal = id(layer.keys) == self._left
        else:
            is_equal = layer.keys is self._rows[0] and layer.values is self._rows[1]
        return is_equal and layer._room is self

    def gives_back(self, layer: Any, rows: int) -> bool:
        """Free the places of a layer's last rows, if it holds them from here and no copy reads them."""
        if self._rows is None or not self.serves(layer) or self.looked_at or torch.is_grad_enabled():
            return False
        self.filled -= rows
        return True
