"""Each layer: a layer's arguments besides its rows: position ids, RoPE tables, and the model's own mask, re-mapped.

Rows keep their original positions unless a stage renumbers them. Tokens after renumbered rows move up by the number of
tokens dropped before them on that layer: its `shift`. Example: of positions 0 to 5 the tokens 2 and 3 are dropped, and
the rest is numbered 0 1 2 3. The next token has position 4, and the shift is 2.

The mask has one form per backend: None if causality alone is right, 4-D bool (SDPA), 4-D float (eager), 2-D key
validity (flash) and BlockMask (flex). The model builds its mask for the unpruned sequence; this module reads it at the
columns that are left. A pad row repeats a real one and sees what that one sees, so its softmax is finite. No row
attends to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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
    unsupported,
)
from foveate.core.tensors import on_tensors
from foveate.engine.cache import PrunedLayer
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.rows import Rows
from foveate.errors import UnsupportedError
from foveate.families.base import Family

# -- positions ----------------------------------------------------------------------------------------------------


Tables = tuple[Tensor, Tensor]


def scales_queries(family: Family, layer: int) -> bool:
    """Return whether a decoder layer's attention scales queries by their positions (Ministral 3)."""
    attention = family.attentions[layer]
    return attention is not None and scales_by_position(type(attention))  # type: ignore[arg-type]


def number_on_cache(forward: Forward, call: LayerCall) -> None:
    """Number the forward's columns from the rows that the layer's cache holds."""
    shift = call.shift
    if shift is None:
        return
    if call.kwargs.get("position_embeddings") is not None:  # a layer without RoPE gets none
        call.kwargs["position_embeddings"] = tables_moved_up(forward, call.index, call.hidden, shift)
    if scales_queries(forward.family, call.index):
        call.kwargs["position_ids"] = move_up(forward, shift).to(call.hidden.device)


def tables_moved_up(forward: Forward, layer: int, hidden: Tensor, shift: Tensor) -> Tables:
    """Return (cos, sin) of all columns at positions reduced by `shift`, for a layer's input."""
    family = forward.family

    def tables() -> Tables:
        return family.rotary(layer, hidden, move_up(forward, shift))

    return forward.memo.once(tables, "moved up", shift, family.rotary_type(layer))


def move_up(forward: Forward, shift: Tensor) -> Tensor:
    """Return position ids of all columns, minus the number of tokens dropped before them."""
    ids = ids_of(forward)
    return ids - shift.to(ids.device)[:, None]


def tables_of(forward: Forward, call: LayerCall, rows: Rows) -> Any:
    """Return (cos, sin) of the rows, at their own positions or numbered from what the layer's cache holds.
    None if the layer gets none.

    Args:
        forward: The forward; knows the original positions.
        call: The layer's call; it has the tables of all columns.
        rows: The rows.
    """
    pair, hidden, family = call.kwargs.get("position_embeddings"), call.hidden, forward.family
    if pair is None:
        return None
    if rows.anew is None:
        return rows.memo.once(lambda: rows.pick(pair), "tables", pair[0])
    shift, kind = call.shift, family.rotary_type(call.index)

    def tables() -> Tables:
        cos, sin = family.rotary(call.index, hidden, _numbers(forward, rows, hidden, shift))
        return cos.to(hidden.device), sin.to(hidden.device)

    return rows.memo.once(tables, "tables", shift, kind)


def row_ids(forward: Forward, call: LayerCall, rows: Rows) -> Tensor | None:
    """Return position ids of the rows, (…, samples, rows), if the layer's attention may read them, else None. RoPE does
    not need them, and flash attention takes gaps in them for packed sequences."""
    scales = scales_queries(forward.family, call.index)
    if not scales and ("flash" in forward.backend or not forward.family.gathers):
        return None
    if scales and "flash" in forward.backend:
        raise UnsupportedError(
            f"Layer {call.index} needs position ids, and flash attention would read gaps between the kept positions as "
            "the ends of packed sequences. Load the model with attn_implementation='sdpa'."
        )
    device = call.hidden.device
    if rows.anew is not None:
        return _numbers(forward, rows, call.hidden, call.shift).to(device)
    # Each row has the id of its source column; a row without a source reads column 0.
    ids: Tensor | None = rows.at_rows(on_tensors(call.kwargs.get("position_ids"), lambda ids: ids.to(device)))
    return ids


def _numbers(forward: Forward, rows: Rows, hidden: Tensor, shift: Tensor | None) -> Tensor:
    """Return position ids of renumbered rows, (samples, rows)."""
    ids = ids_of(forward)
    device = ids.device
    # Counting starts at the position of each sample's first column that is not padding.
    ids = ids.expand(hidden.shape[0], -1)
    first = ids.gather(1, forward.first.to(device)[:, None])[:, 0]
    if shift is not None:
        first = first - shift.to(device)
    return rows.on(device).number_from(first)


def ids_of(forward: Forward) -> Tensor:
    """Return position ids of a forward's columns, as the model passes them to its rotary embedding.

    Raises:
        UnsupportedError: If it passes none.
    """
    if forward.position_ids is None:
        raise unsupported(
            "passes the decoder's rotary_emb no position_ids, but this method renumbers rows or reads Rotary()"
        )
    return forward.position_ids


# -- what windows count -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """What a layer's window counts, if not the columns in which rows are stored: see `Rows.window_columns`.

    Attributes:
        columns: (samples, span) int64, the unpruned column that it counts for each column of this call.
        keys: (samples, slots) int64, the same for each slot.
        past: Unpruned columns before this call.
        size: Columns that a row sees, its own included.
        numbered: Whether any row has a new number.
        live: (samples, unpruned columns), nonzero where a column is not padding; None: none is padding.
    """

    columns: Tensor
    keys: Tensor
    past: int
    size: int
    numbered: bool
    live: Tensor | None

    def of_sample(self, sample: int, slots: int, pads: int) -> "Window":
        """Return the window of one sample whose first rows, behind `slots` slots, are `pads` pads that are left out."""
        own = slice(sample, sample + 1)
        keys = torch.cat((self.keys[own, :slots], self.keys[own, slots + pads :]), dim=1)
        live = None if self.live is None else self.live[own]
        return replace(self, columns=self.columns[own], keys=keys, live=live)

    def visible(self, mask: Any, samples: Tensor, rows: Tensor, keys: Tensor, total: int) -> Tensor:
        """Return what rows see, (some, heads or 1, rows, slots) bool; see `visibility`."""
        heads = torch.arange(1 if isinstance(mask, BlockMask) else mask.shape[1], device=rows.device)[:, None, None]
        own = torch.arange(len(rows), device=rows.device)[:, None, None, None]
        slots = torch.arange(keys.shape[1], device=keys.device)
        look = partial(_look, mask, total, samples[:, None, None, None], heads)
        return self.sees(look, own, rows[:, None, :, None], keys, slots)

    def sees(
        self, look: Callable[[Tensor, Tensor], Tensor], own: Tensor, row: Tensor, keys: Tensor, slot: Tensor
    ) -> Tensor:
        """Return whether rows see slots. Arguments are broadcast.

        Args:
            look: Returns whether the model's mask lets a column of this call see an unpruned column.
            own: Index of a sample in `columns` and `keys`.
            row: A row's column of this call.
            keys: (samples, slots) int64, the unpruned columns of the slots.
            slot: Index of a slot.
        """
        key, counts, counted = keys[own, slot], self.columns[own, row], self.keys[own, slot]
        # Who comes before whom is told by the columns in which rows are stored, as in layers without a window.
        ahead, real = key > row + self.past, key >= 0
        if not self.numbered:
            # The mask at the columns of the tokens. Rows look ahead only where they see both ways: in a picture.
            there = look(counts - self.past, counted)
            return torch.where(ahead, look(row, key) & there, there | (counted > counts)) & real
        # With new numbers there are no such columns. What the mask hides from a row behind it is padding, or has left
        # the window, which reaches further back now. Where rows see both ways, they may see beyond a window.
        near = counts - counted < self.size
        both_ways = look(key - self.past, row + self.past)
        if self.live is not None:
            live = self.live.to(keys.device)
            near = near & (live[own, key.clamp(min=0, max=live.shape[1] - 1)] != 0)
        return (look(row, key) & (near | both_ways) & real) | (near & ~ahead & real)


def coming_in_window(
    forward: Forward, rows: Rows | None, stored: PrunedLayer | None, past: int, hidden: Tensor
) -> Tensor | None:
    """Return the columns in which windows count the rows of a call, (samples, rows) int64.

    None if no layer has a window, or if they count these rows and all earlier slots where they are stored.

    Args:
        forward: The forward.
        rows: The rows; None: all columns.
        stored: The slots of earlier calls; None: there are none, or they hold their own columns.
        past: Unpruned columns before this call.
        hidden: The input of a layer.
    """
    if not forward.family.windows:
        return None
    shift = None if stored is None else stored.shift
    coming = None if rows is None else rows.window_columns(past, shift, forward.first)
    if coming is not None or stored is None or (shift is None and stored.window_columns is None):
        return coming

    def count() -> Tensor:
        if rows is not None:
            return rows.read + past
        columns = torch.arange(past, past + forward.span, device=hidden.device).expand(len(hidden), -1)
        return columns if shift is None else columns - shift.to(hidden.device)[:, None]

    return forward.memo.once(count, "counted", rows, shift, past, hidden.device)


def window_of(
    forward: Forward, layer: int, rows: Rows | None, stored: PrunedLayer | None, past: int, hidden: Tensor
) -> Window | None:
    """Return what a layer's window counts; see `coming_in_window`. None also if the window reaches all columns.

    Raises:
        UnsupportedError: If rows have new numbers and the layer attends in chunks.
    """
    reach, total = forward.family.windows.get(layer), past + forward.span
    coming = None
    if reach is not None and total > reach.columns:
        coming = coming_in_window(forward, rows, stored, past, hidden)
    if reach is None or coming is None:
        return None
    numbered = (rows is not None and rows.anew is not None) or (stored is not None and stored.shift is not None)
    if numbered and reach.in_chunks:
        raise UnsupportedError(
            f"Layer {layer} attends in chunks of {reach.columns} tokens, and rows with new numbers would be in other "
            "chunks. Use a method with positions='keep'."
        )
    keys = None if stored is None else stored.window_slots(coming)
    if keys is None:
        earlier = torch.arange(past, device=coming.device).expand(len(coming), -1)
        keys = torch.cat((earlier, coming), dim=1)
    columns = coming
    if rows is not None:
        columns = coming.new_zeros(len(coming), forward.span).scatter(1, rows.read, coming)
    return Window(columns, keys, past, reach.columns, numbered, forward.live)


# -- masks --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, eq=False)
class Remap:
    """Places of a layer's queries and keys in the unpruned sequence.

    Attributes:
        queries: (samples, rows) int64, columns of this call.
        keys: (samples, slots) int64, unpruned columns, −1 for a pad.
        past: Unpruned columns before this call.
        total: Unpruned columns with this call's.
        ragged: Whether any key is a pad.
        causal: Whether a layer without a mask lets a row see only itself and rows before it.
        window: What the layer's window counts; None: these columns.
    """

    queries: Tensor
    keys: Tensor
    past: int
    total: int
    ragged: bool
    causal: bool = True
    window: Window | None = None

    def __call__(self, mask: Any, backend: str) -> Any:
        """Return the mask for the layer.

        Args:
            mask: The mask that the model passes to the layer.
            backend: The attention implementation's name.

        Raises:
            UnsupportedError: If no mask can be made in a form that this backend reads.
        """
        if mask is None:
            if not self.ragged:
                return None
            return self._from_nothing(backend)
        keys = _columns_of(width_of(mask), self.keys, self.total)
        if isinstance(mask, BlockMask):
            return self._block(mask, keys)
        if mask.dim() == 2:  # flash attention: which keys are not padding
            return mask.take_along_dim(keys.clamp(min=0), dim=1).bool() & (keys >= 0)
        # (samples or 1, heads or 1, columns, columns), bool or additive float. A pad has no column: it is read at
        # column 0 and then hidden.
        samples = torch.arange(keys.shape[0], device=keys.device)
        if self.window is not None:
            seen = self.window.visible(mask, samples, self.queries, self.keys, self.total)
            if mask.dtype == torch.bool:
                return seen
            return torch.zeros_like(seen, dtype=mask.dtype).masked_fill(~seen, torch.finfo(mask.dtype).min)
        picked = _at(mask.expand(keys.shape[0], -1, -1, -1), samples, self.queries, keys)
        hidden = (keys < 0)[:, None, None, :]
        if mask.dtype == torch.bool:
            return picked & ~hidden
        return picked.masked_fill(hidden, torch.finfo(mask.dtype).min)

    def with_bias(self, mask: Any, bias: Tensor, dtype: torch.dtype) -> Tensor:
        """Add (samples, slots) to the logits of keys. Returns a mask, (samples, heads or 1, rows, slots) of `dtype`."""
        if mask is None:
            mask = _in_order(self.keys, self.past, self.causal, self.queries)
        least = torch.finfo(dtype).min
        added = bias.to(dtype)[:, None, None, :]
        if mask.dtype == torch.bool:
            return torch.where(mask, added, least)
        return torch.where(mask > least / 2, mask + added, least)

    def _from_nothing(self, backend: str) -> Tensor:
        """Build the mask that a kernel without a mask implies, with pads hidden."""
        builder = ALL_MASK_ATTENTION_FUNCTIONS.get(backend)
        if builder is flash_attention_mask:
            return self.keys >= 0
        if builder is not sdpa_mask and builder is not eager_mask:
            raise UnsupportedError(
                f"The samples of this batch keep different numbers of tokens, so they need a mask, and the mask format "
                f"of the attention kernel {backend!r} is not known. Use sdpa, eager, flash or flex attention, run "
                "one sample at a time, or register sdpa_mask for the kernel in transformers' AttentionMaskInterface."
            )
        return _in_order(self.keys, self.past, self.causal, self.queries)

    def _block(self, mask: BlockMask, keys: Tensor) -> BlockMask:
        queries, inner, window = self.queries, mask.mask_mod, self.window

        def sees(sample: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            if window is not None:
                look = partial(_look, mask, self.total, sample, head)
                return window.sees(look, sample, queries[sample, row], self.keys, slot)
            column = keys[sample, slot]
            return (column >= 0) & inner(sample, head, queries[sample, row], column.clamp(min=0))

        return create_block_mask(sees, keys.shape[0], None, queries.shape[1], keys.shape[1], device=keys.device)


def visibility(
    mask: Any,
    samples: Tensor,
    keys: Tensor,
    past: int,
    total: int,
    ragged: bool = False,
    causal: bool = True,
    window: Window | None = None,
) -> Callable[[Tensor], Tensor] | None:
    """Return a function that says what rows of some samples see by the model's own mask; None if causality suffices.

    Args:
        mask: The mask that the model passes to the layer.
        samples: Indices of the samples, (some,) int64.
        keys: (some, slots) int64, the unpruned column of each slot, −1 for a pad.
        past: Unpruned columns before this call.
        total: Unpruned columns with this call's.
        ragged: Whether any slot may be a pad.
        causal: Whether the kernel, without a mask, lets a row see only itself and rows before it.
        window: What the layer's window counts for these samples; None: these columns.

    Returns:
        A function of rows, (some, rows) int64 columns of this call, that returns which slots they see: (some, heads or
        1, rows, slots) bool.
    """
    if not isinstance(mask, BlockMask) and (not isinstance(mask, Tensor) or mask.dim() != 4):
        if causal and not ragged:
            return None
        return partial(_in_order, keys, past, causal)
    if window is not None:
        return lambda rows: window.visible(mask, samples, rows, keys, total)
    columns = _columns_of(width_of(mask), keys, total)
    reached = (columns >= 0)[:, None, None, :]

    def see(rows: Tensor) -> Tensor:
        if isinstance(mask, BlockMask):  # its function answers for a sample, head, row and column
            places = columns.clamp(min=0)[:, None, :]
            seen = mask.mask_mod(samples[:, None, None], rows.new_zeros(()), rows[:, :, None], places)[:, None]
        else:  # (samples or 1, heads or 1, columns, columns), bool or additive float
            seen = _at(mask, torch.zeros_like(samples) if mask.shape[0] == 1 else samples, rows, columns)
            if seen.dtype != torch.bool:
                seen = seen > torch.finfo(seen.dtype).min / 2
        return seen & reached

    return see


def width_of(mask: Any) -> int:
    """Return how many columns a mask of any form covers."""
    width: int = mask.seq_lengths[1] if isinstance(mask, BlockMask) else mask.shape[-1]
    return width


def _columns_of(width: int, keys: Tensor, total: int) -> Tensor:
    """Map keys to columns of a mask over the last `width` of `total` columns; −1 for a pad or outside the mask."""
    offset = total - width
    if offset == 0:
        return keys
    # The offset may move a real column below 0 (outside a sliding window). No row attends to it either.
    return (keys - offset).clamp(min=-1).masked_fill(keys < 0, -1)


def _at(mask: Tensor, samples: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read a 4-D mask at rows, (some, rows), and columns, (some, slots): (some, heads or 1, rows, slots)."""
    # Advanced indices around a slice put their dimensions first: (samples, rows, slots, heads).
    picked = mask[samples[:, None, None], :, rows[:, :, None], columns.clamp(min=0)[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def _look(mask: Any, total: int, sample: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return whether a mask over the last of `total` columns lets a row see a column. Arguments are broadcast.

    False for rows and columns outside the mask.
    """
    column = column - (total - width_of(mask))
    there = (row >= 0) & (column >= 0)
    row, column = row.clamp(min=0), column.clamp(min=0)
    if isinstance(mask, BlockMask):
        seen: Tensor = mask.mask_mod(sample, head, row, column)
    else:
        seen = mask[torch.zeros_like(sample) if mask.shape[0] == 1 else sample, head, row, column]
    if seen.dtype != torch.bool:
        seen = seen > torch.finfo(seen.dtype).min / 2
    return seen & there


def _in_order(keys: Tensor, past: int, causal: bool, rows: Tensor) -> Tensor:
    """Return what rows see without a mask: slots that are not pads and, in a causal layer, not after themselves."""
    seen = (keys >= 0)[:, None, None, :].expand(-1, 1, rows.shape[1], -1)
    if not causal:
        return seen
    unpruned = rows + past  # in the same columns as the keys
    return seen & (keys[:, None, None, :] <= unpruned[:, None, :, None])
