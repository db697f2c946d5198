"""Each layer: the model's own mask, read at the columns that are left.

The mask has one form per backend: None if causality alone is right, 4-D bool (SDPA), 4-D float (eager), 2-D key
validity (flash) and BlockMask (flex). The model builds its mask for the unpruned sequence. A pad row repeats a real one
and sees what that one sees, so its softmax is finite. No row attends to it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from foveate._transformers import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, flash_attention_mask, sdpa_mask
from foveate.errors import UnsupportedError


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
