"""Decode: keys and values with free places behind them, so that decoded rows are written without copying the others."""

from typing import Any

import torch
from torch import Tensor

MOST_STEP = 16
"""Most rows of a call for which a room is used: a decoding step, possibly with guesses, but not a prompt."""


class Room:
    """A long layer's keys and values, and free places behind them.

    A room serves one layer; a copy of the layer has none. It is valid only while the layer holds the very tensors it
    got from here. A reorder replaces them, and then a new room is made, so no row is written that another layer may
    still read. Removed rows free their places, unless a copy of the layer reads them.

    Args:
        keys, values: The current rows, (samples, heads, rows, head size) each.

    Attributes:
        filled: How many places are filled.
        looked_at: Whether a copy may read the current rows.
    """

    looked_at = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        places = keys.shape[-2] + max(4 * MOST_STEP, keys.shape[-2] // 8)
        self._keys, self._values = (one.new_empty(*one.shape[:2], places, one.shape[-1]) for one in (keys, values))
        self.filled = 0
        self.put(keys, values)

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
        """Return whether a layer holds the very rows that it got from here, or has not asked for the latest."""
        own, (keys, values) = vars(layer), self._rows
        return own.get("_room") is self and own.get("keys", keys) is keys and own.get("values", values) is values

    def gives_back(self, layer: Any, rows: int) -> bool:
        """Free the places of a layer's last rows, if it holds them from here and no copy reads them."""
        if not self.serves(layer) or self.looked_at or torch.is_grad_enabled():
            return False
        self.filled -= rows
        return True

    def copies(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a copy of the layer may hold in place of these rows. They are not written any more."""
        self.looked_at = True
        return keys, values
