"""Each layer: what a layer gets beside its rows: position ids, RoPE tables, and the model's own mask, re-mapped.

Rows keep the positions that they entered with, unless a stage numbers them anew. Tokens that come after rows numbered
anew move up by the number of tokens dropped before them on that layer: its `shift`. An example: of positions 0 to 5 the
tokens 2 and 3 are dropped and the rest is numbered 0 1 2 3; the next token has position 4, and the shift is 2.

The mask has one form per backend: None where causality alone is right, 4-D bool (SDPA), 4-D float (eager), 2-D key
validity (flash) and BlockMask (flex). The model built its mask for the unpruned sequence; here it is read at the
columns that are left. A pad row repeats a real one and sees what that one sees, so its softmax is finite; no row sees
it as a key.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from foveate._transformers import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    eager_mask,
    flash_attention_mask,
    scales_by_position,
    sdpa_mask,
    unknown,
)
from foveate.engine.forward import Forward, LayerCall, RowMap
from foveate.errors import UnsupportedError
from foveate.families.base import Family

# -- positions ----------------------------------------------------------------------------------------------------


Tables = tuple[Tensor, Tensor]


class Positions:
    """Makes position ids and tables for a model's layers.

    Args:
        family: Knows the decoder's RoPE.
        renumbers: Whether any stage numbers rows anew.

    Attributes:
        scaling: Layers whose attention scales queries by their positions (Ministral 3).
    """

    def __init__(self, family: Family, renumbers: bool) -> None:
        self._family = family
        self._kinds: list[Any] = []
        if renumbers:
            self._kinds = [family.rotary_type(index) for index in range(len(family.layers))]
        self.scaling: set[int] = set()
        for index, attention in enumerate(family.attentions):
            if attention is not None and scales_by_position(type(attention)):  # type: ignore[arg-type]
                self.scaling.add(index)

    # -- a layer whose cache has lost tokens, in a later forward -----------------------------------------------

    def move_up(self, forward: Forward, call: LayerCall) -> None:
        """Number all columns of the forward on from the rows that the layer's cache holds."""
        shift = None if call.stored is None else call.stored.shift
        if shift is None:
            return
        kind = self._kinds[call.index]

        def tables() -> Tables:
            return self._family.rotary(call.index, call.hidden, moved_up(forward, shift))

        call.kwargs["position_embeddings"] = forward.memo.once(tables, "moved up", shift, kind)
        if call.index in self.scaling:
            call.kwargs["position_ids"] = moved_up(forward, shift).to(call.hidden.device)

    # -- a layer that runs on rows -----------------------------------------------------------------------------

    def tables(self, forward: Forward, call: LayerCall, rows: RowMap) -> Any:
        """(cos, sin) of the rows: each at its own position, or numbered on from what the layer's cache holds.

        Args:
            forward: Knows the positions that rows entered with.
            call: The layer's call; it has the tables of all columns.
            rows: The rows.
        """
        pair, hidden = call.kwargs["position_embeddings"], call.hidden
        if rows.numbered is None:
            return rows.memo.once(lambda: rows.pick(pair), "tables", pair[0])
        shift, kind = call.shift, self._kinds[call.index]

        def renumbered() -> Tables:
            cos, sin = self._family.rotary(call.index, hidden, _numbers(forward, rows, hidden, shift))
            return cos.to(hidden.device), sin.to(hidden.device)

        return rows.memo.once(renumbered, "tables", shift, kind)

    def ids(self, forward: Forward, call: LayerCall, rows: RowMap) -> Tensor | None:
        """Position ids of the rows, (…, samples, rows), if the layer's attention may read them; else None: RoPE is in
        position_embeddings, and flash attention reads gaps as packed sequences."""
        scales = call.index in self.scaling
        if not scales and ("flash" in forward.backend or not self._family.gathers):
            return None
        if scales and "flash" in forward.backend:
            raise UnsupportedError(
                f"Layer {call.index} needs position ids, and flash attention would read gaps between the kept "
                "positions as the ends of packed sequences. Load the model with attn_implementation='sdpa'."
            )
        if not scales and rows.numbered is None:
            taken: Tensor | None = rows.take(call.kwargs.get("position_ids"))
            return taken
        if rows.numbered is not None:
            return _numbers(forward, rows, call.hidden, call.shift).to(call.hidden.device)
        ids: Tensor = call.kwargs["position_ids"]
        ids = ids.to(call.hidden.device).expand(call.hidden.shape[0], -1)
        return ids.gather(1, rows.source.clamp(min=0))


def moved_up(forward: Forward, shift: Tensor) -> Tensor:
    """Position ids of all columns, less the number of tokens dropped before them."""
    ids = ids_of(forward)
    return ids - shift.to(ids.device)[:, None]


def _numbers(forward: Forward, rows: RowMap, hidden: Tensor, shift: Tensor | None) -> Tensor:
    """Position ids of rows that are numbered anew, (samples, rows)."""
    ids = ids_of(forward)
    device = ids.device
    # Counting begins at the position of each sample's first column that is no padding.
    ids = ids.expand(hidden.shape[0], -1)
    first = ids.gather(1, forward.first.to(device)[:, None])[:, 0]
    if shift is not None:
        first = first - shift.to(device)
    return rows.on(device).number_from(first)


def ids_of(forward: Forward) -> Tensor:
    """Position ids of a forward's columns, as the model hands them to its rotary embedding.

    Raises:
        UnsupportedError: If it hands none.
    """
    if forward.position_ids is None:
        raise unknown(
            "hands the decoder's rotary_emb no position_ids, and this method numbers rows anew or reads Rotary()"
        )
    return forward.position_ids


# -- masks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Remap:
    """Where the queries and keys of a layer stand in the unpruned sequence.

    Attributes:
        queries: (samples, rows) int64, columns of this call.
        keys: (samples, slots) int64, unpruned columns, −1 for a pad.
        past: Unpruned columns before this call.
        total: Unpruned columns with this call's.
        ragged: Whether any key is a pad.
        causal: Whether a layer without a mask lets a row see those before it alone.
    """

    queries: Tensor
    keys: Tensor
    past: int
    total: int
    ragged: bool
    causal: bool = True

    def __call__(self, mask: Any, backend: str) -> Any:
        """The mask for the layer.

        Args:
            mask: What the model hands the layer.
            backend: The attention implementation's name.

        Raises:
            UnsupportedError: If no mask of a form this backend reads can be made.
        """
        if mask is None:
            if not self.ragged:
                return None
            return self._from_nothing(backend)
        keys = _columns_of(width_of(mask), self.keys, self.total)
        if isinstance(mask, BlockMask):
            return self._block(mask, keys)
        if mask.dim() == 2:  # which keys are none of padding
            return mask.take_along_dim(keys.clamp(min=0), dim=1).bool() & (keys >= 0)
        # (samples or 1, heads or 1, columns, columns), bool or additive float. A pad has no column of its own: it is
        # read at column 0 and hidden below.
        samples = torch.arange(keys.shape[0], device=keys.device)
        picked = _at(mask.expand(keys.shape[0], -1, -1, -1), samples, self.queries, keys)
        hidden = (keys < 0)[:, None, None, :]
        if mask.dtype == torch.bool:
            return picked & ~hidden
        return picked.masked_fill(hidden, torch.finfo(mask.dtype).min)

    def _from_nothing(self, backend: str) -> Tensor:
        """What the kernel does without a mask, pads masked."""
        builder = ALL_MASK_ATTENTION_FUNCTIONS.get(backend)
        if builder is flash_attention_mask:
            return self.keys >= 0
        if builder is not sdpa_mask and builder is not eager_mask:
            raise UnsupportedError(
                f"The samples of this batch keep different numbers of tokens, so they need a mask, and the mask format "
                f"of the attention kernel {backend!r} is not known. Use sdpa, eager, flash or flex attention, or run "
                "one sample at a time, or register sdpa_mask for the kernel in transformers' AttentionMaskInterface."
            )
        return _in_order(self.keys, self.past, self.causal, self.queries)

    def _block(self, mask: BlockMask, keys: Tensor) -> BlockMask:
        queries, inner = self.queries, mask.mask_mod

        def seen(sample: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            column = keys[sample, slot]
            return (column >= 0) & inner(sample, head, queries[sample, row], column.clamp(min=0))

        return create_block_mask(seen, keys.shape[0], None, queries.shape[1], keys.shape[1], device=keys.device)


def visibility(
    mask: Any, samples: Tensor, keys: Tensor, past: int, total: int, ragged: bool = False, causal: bool = True
) -> Callable[[Tensor], Tensor] | None:
    """What some samples' rows see by the model's own mask; None where it says no more than causality.

    Args:
        mask: What the model hands the layer.
        samples: Which samples, (some,) int64.
        keys: (some, slots) int64, the unpruned column of each slot, −1 for a pad.
        past: Unpruned columns before this call.
        total: Unpruned columns with this call's.
        ragged: Whether any slot may be a pad.
        causal: Whether the kernel lets a row see those before it alone where no mask says more.

    Returns:
        Says of rows, (some, rows) int64 columns of this call, which slots they see: (some, heads or 1, rows, slots)
        bool.
    """
    if not isinstance(mask, BlockMask) and (not isinstance(mask, Tensor) or mask.dim() != 4):
        if causal and not ragged:
            return None
        return partial(_in_order, keys, past, causal)
    columns = _columns_of(width_of(mask), keys, total)
    reached = (columns >= 0)[:, None, None, :]

    def see(rows: Tensor) -> Tensor:
        if isinstance(mask, BlockMask):  # a function says yes or no for a sample, head, row and column
            places = columns.clamp(min=0)[:, None, :]
            seen = mask.mask_mod(samples[:, None, None], rows.new_zeros(()), rows[:, :, None], places)[:, None]
        else:  # (samples or 1, heads or 1, columns, columns), bool or additive float
            seen = _at(mask, torch.zeros_like(samples) if mask.shape[0] == 1 else samples, rows, columns)
            if seen.dtype != torch.bool:
                seen = seen > torch.finfo(seen.dtype).min / 2
        return seen & reached

    return see


def width_of(mask: Any) -> int:
    """How many columns a mask covers, of whatever form."""
    width: int = mask.seq_lengths[1] if isinstance(mask, BlockMask) else mask.shape[-1]
    return width


def _columns_of(width: int, keys: Tensor, total: int) -> Tensor:
    """Keys as columns of a mask that covers the last `width` of `total` columns; −1 for a pad, and out of its reach."""
    offset = total - width
    if offset == 0:
        return keys
    # The shift may bring a real column below zero (outside a sliding window): no row's key either.
    return (keys - offset).clamp(min=-1).masked_fill(keys < 0, -1)


def _at(mask: Tensor, samples: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """A 4-D mask at rows, (some, rows), and its columns, (some, slots): (some, heads or 1, rows, slots)."""
    # Advanced indices around a slice put their dimensions first: (samples, rows, slots, heads).
    picked = mask[samples[:, None, None], :, rows[:, :, None], columns.clamp(min=0)[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _in_order(keys: Tensor, past: int, causal: bool, rows: Tensor) -> Tensor:
    """What rows see without a mask: slots that are no pads, and where the layer is causal, none behind themselves."""
    seen = (keys >= 0)[:, None, None, :].expand(-1, 1, rows.shape[1], -1)
    if not causal:
        return seen
    unpruned = rows + past  # as the columns that keys are in
    return seen & (keys[:, None, None, :] <= unpruned[:, None, :, None])
