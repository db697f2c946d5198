"""The decoder in numbers: what its layers, its head and its cache cost on so many rows."""

from dataclasses import dataclass

CHUNK = 64
"""Rows of a chunk of the gated delta rule, of which whole ones are computed."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What `foveate.cost._measured` fits to the FLOPs of a decoder's layers.

    Attributes:
        depth: Layers.
        width: The residual stream's.
        rows: FLOPs of each layer's projections and MLP on one row; in a mixture, of the router and the experts that a
            row goes to.
        pairs: FLOPs of each layer's attention for a row that looks at a row.
        keys: FLOPs of each layer for a row that is looked at, however many look: where it is expanded anew (MLA).
        chunks: FLOPs of each layer for a chunk of rows, among these and with a state (the gated delta rule).
        states: Numbers of the state of such a layer.
        stored: Numbers that each layer keeps for a row: its key and value.
        recurrent: Layers without attention.
        head: FLOPs of the language-model head on one row.
        windows: Tokens a row of each layer sees, its own included; None if all.
    """

    depth: int
    width: int
    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    keys: tuple[int, ...]
    chunks: tuple[int, ...]
    states: tuple[int, ...]
    stored: tuple[int, ...]
    recurrent: frozenset[int]
    head: int
    windows: tuple[int | None, ...]

    def layer(self, index: int, rows: int, keys: int, halved: bool = False) -> int:
        """FLOPs of layer `index` on `rows` rows that look at `keys` rows; `halved` counts half the attention."""
        flops = rows * self.rows[index]
        if index in self.recurrent:
            if rows == 1:  # reads its key from the state, corrects the state and reads its query
                return flops + 6 * self.states[index]
            return flops + -(-rows // CHUNK) * self.chunks[index]
        looking = rows * keys * self.pairs[index]
        if halved:
            looking //= 2
        return flops + keys * self.keys[index] + looking

    def held(self, index: int, rows: int) -> int:
        """Rows in the cache of layer `index` after `rows` rows: those that the next row sees; none beside a state."""
        if index in self.recurrent:
            return 0
        window = self.windows[index]
        if window is None:
            return rows
        return min(rows, window - 1)

    def cached(self, index: int, rows: int) -> int:
        """Numbers that layer `index` keeps for `rows` rows: their keys and values."""
        return rows * self.stored[index]
