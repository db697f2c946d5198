"""Each layer: position ids and RoPE tables of the rows that a layer runs on.

Rows keep the positions that they entered with, unless a stage numbers them anew. Tokens that come after rows numbered
anew move up by the number of tokens dropped before them on that layer: its `shift`. An example: of positions 0 to 5 the
tokens 2 and 3 are dropped and the rest is numbered 0 1 2 3; the next token has position 4, and the shift is 2.
"""

from typing import Any

from torch import Tensor

from foveate._transformers import scales_by_position
from foveate.engine import guards
from foveate.engine.forward import Forward, LayerCall, RowMap
from foveate.families.base import Family

__all__ = ["Positions"]

Tables = tuple[Tensor, Tensor]


class Positions:
    """Makes position ids and tables for a model's layers.

    Args:
        family: Knows the decoder's RoPE.
        renumbers: Whether any stage numbers rows anew.
    """

    def __init__(self, family: Family, renumbers: bool) -> None:
        self._family = family
        self._kinds: list[Any] = []
        if renumbers:
            self._kinds = [family.rotary_type(index) for index in range(len(family.layers))]
        self._scaling: set[int] = set()
        for index, layer in enumerate(family.layers):
            attention = getattr(layer, "self_attn", None)
            if attention is not None and scales_by_position(attention):
                self._scaling.add(index)

    def scales(self, index: int) -> bool:
        """Whether a layer's attention scales queries by their positions (Ministral 3)."""
        return index in self._scaling

    @property
    def learned_length(self) -> int:
        """The position from which such attentions scale by more than 1."""
        length: int = self._family.text.config.rope_parameters["original_max_position_embeddings"]
        return length

    # -- a layer whose cache has lost tokens, in a later forward -----------------------------------------------

    def move_up(self, forward: Forward, call: LayerCall) -> None:
        """Number all columns of the forward on from the rows that the layer's cache holds."""
        if call.stored is None or call.stored.shift is None:
            return
        shift, kind = call.stored.shift, self._kinds[call.index]

        def tables() -> Tables:
            return self._family.rotary(call.index, call.hidden, moved_up(forward, shift))

        call.kwargs["position_embeddings"] = forward.memo.once(tables, "moved up", shift, kind)
        if self.scales(call.index):
            call.kwargs["position_ids"] = moved_up(forward, shift).to(call.hidden.device)

    # -- a layer that runs on rows -----------------------------------------------------------------------------

    def tables(self, forward: Forward, call: LayerCall, rows: RowMap) -> Tables:
        """(cos, sin) of the rows: each at its own position, or numbered on from what the layer's cache holds.

        Args:
            forward: Knows the positions that rows entered with.
            call: The layer's call; it has the tables of all columns.
            rows: The rows.
        """
        pair, hidden = call.kwargs["position_embeddings"], call.hidden
        if rows.numbered is None:
            return rows.memo.once(lambda: rows.pick(pair), "tables", pair[0])
        shift, kind = _shift(call), self._kinds[call.index]

        def renumbered() -> Tables:
            cos, sin = self._family.rotary(call.index, hidden, _numbers(forward, rows, hidden, shift))
            return cos.to(hidden.device), sin.to(hidden.device)

        return rows.memo.once(renumbered, "tables", shift, kind)

    def ids(self, forward: Forward, call: LayerCall, rows: RowMap) -> Tensor | None:
        """Position ids of the rows, (samples, rows), if the layer's attention scales queries by them; else None: RoPE
        is in position_embeddings, and flash attention reads gaps as packed sequences."""
        if not self.scales(call.index):
            return None
        guards.refuse_scaled_flash(call.index, forward.backend)
        if rows.numbered is not None:
            return _numbers(forward, rows, call.hidden, _shift(call)).to(call.hidden.device)
        ids: Tensor = call.kwargs["position_ids"]
        ids = ids.to(call.hidden.device).expand(call.hidden.shape[0], -1)
        return ids.gather(1, rows.source.clamp(min=0))


def _shift(call: LayerCall) -> Tensor | None:
    """How far positions have moved up on the layer's cache."""
    if call.stored is None:
        return None
    return call.stored.shift


def moved_up(forward: Forward, shift: Tensor) -> Tensor:
    """Position ids of all columns, less the number of tokens dropped before them."""
    assert forward.position_ids is not None
    return forward.position_ids - shift.to(forward.position_ids.device)[:, None]


def _numbers(forward: Forward, rows: RowMap, hidden: Tensor, shift: Tensor | None) -> Tensor:
    """Position ids of rows that are numbered anew, (samples, rows)."""
    assert forward.position_ids is not None
    device = forward.position_ids.device
    # Counting begins at the position of each sample's first column that is no padding.
    ids = forward.position_ids.expand(hidden.shape[0], -1)
    first = ids.gather(1, forward.first.to(device)[:, None])[:, 0]
    if shift is not None:
        first = first - shift.to(device)
    return rows.on(device).renumbered(first)
