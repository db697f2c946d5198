"""The model's own attention mask, re-mapped to the rows and slots a layer really has.

A pad row repeats a real one and sees what that one sees, so its softmax is finite; as a key it is nobody's.

One form per backend: None where causality alone is right, 4-D bool (SDPA), 4-D float (eager), 2-D key
validity (flash) and BlockMask (flex). The model built its mask for the unpruned sequence; here it is read at
the columns that are left.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask, flash_attention_mask, sdpa_mask

from foveate.errors import UnsupportedError

__all__ = ["Remap", "visibility"]


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
            return self._from_nothing(backend) if self.ragged else None
        if isinstance(mask, BlockMask):
            return self._block(mask)
        if mask.dim() == 2:
            return self._validity(mask)
        return self._dense(mask)

    def _from_nothing(self, backend: str) -> Tensor:
        """What the kernel does without a mask, pads masked."""
        builder = ALL_MASK_ATTENTION_FUNCTIONS.get(backend)
        if builder is flash_attention_mask:
            return self.keys >= 0
        if builder is not sdpa_mask and builder is not eager_mask:
            raise UnsupportedError(
                f"A batch whose samples keep different numbers of tokens needs a mask, and what form the attention "
                f"{backend!r} reads is not known. Use sdpa, eager, flash or flex attention, one sample at a time, or "
                "register sdpa_mask for it in transformers' AttentionMaskInterface."
            )
        seen = (self.keys >= 0)[:, None, :].expand(-1, self.queries.shape[1], -1)
        if self.causal:
            seen = seen & (self.keys[:, None, :] <= (self.queries + self.past)[:, :, None])
        return seen[:, None]

    def _dense(self, mask: Tensor) -> Tensor:
        """A (samples or 1, heads or 1, columns, columns) mask, bool or additive float."""
        keys = self._columns_of(mask.shape[-1])
        samples = torch.arange(keys.shape[0], device=keys.device)
        picked = mask.expand(keys.shape[0], -1, -1, -1)
        # Advanced indices around a slice put their dimensions first: (samples, rows, slots, heads).
        picked = picked[samples[:, None, None], :, self.queries[:, :, None], keys.clamp(min=0)[:, None, :]]
        picked = picked.permute(0, 3, 1, 2)
        hidden = (keys < 0)[:, None, None, :]
        if mask.dtype == torch.bool:
            return picked & ~hidden
        return picked.masked_fill(hidden, torch.finfo(mask.dtype).min)

    def _validity(self, mask: Tensor) -> Tensor:
        """A (samples, columns) mask of keys."""
        keys = self._columns_of(mask.shape[-1])
        return mask.take_along_dim(keys.clamp(min=0), dim=1).bool() & (keys >= 0)

    def _block(self, mask: BlockMask) -> BlockMask:
        keys, queries, inner = self._columns_of(mask.seq_lengths[1]), self.queries, mask.mask_mod

        def seen(sample: Tensor, head: Tensor, row: Tensor, slot: Tensor) -> Tensor:
            column = keys[sample, slot]
            return (column >= 0) & inner(sample, head, queries[sample, row], column.clamp(min=0))

        return create_block_mask(seen, keys.shape[0], None, queries.shape[1], keys.shape[1], device=keys.device)

    def _columns_of(self, width: int) -> Tensor:
        """Keys as columns of a mask that covers the last `width` unpruned columns; −1 if it does not reach them."""
        offset = self.total - width
        if offset == 0:
            return self.keys
        # The shift may bring a real column below zero (outside a sliding window): nobody's key either.
        return (self.keys - offset).clamp(min=-1).masked_fill(self.keys < 0, -1)


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
    if isinstance(mask, BlockMask):
        width, inner = mask.seq_lengths[1], mask.mask_mod

        def at(rows: Tensor, places: Tensor) -> Tensor:
            return inner(samples[:, None, None], rows.new_zeros(()), rows, places)[:, None]
    elif isinstance(mask, Tensor) and mask.dim() == 4:
        width, of = mask.shape[-1], samples if mask.shape[0] > 1 else torch.zeros_like(samples)

        def at(rows: Tensor, places: Tensor) -> Tensor:
            # Advanced indices around a slice put their dimensions first: (samples, rows, slots, heads).
            seen = mask[of[:, None, None], :, rows, places].permute(0, 3, 1, 2)
            return seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    elif causal and not ragged:
        return None
    else:

        def by_column(rows: Tensor) -> Tensor:
            seen = (keys >= 0)[:, None, None, :].expand(-1, 1, rows.shape[1], -1)
            return seen & (keys[:, None, None, :] <= (rows + past)[:, None, :, None]) if causal else seen

        return by_column
    # Below zero where the mask does not reach: outside a sliding window.
    places = (keys - (total - width)).masked_fill(keys < 0, -1)
    reached = (places >= 0)[:, None, None, :]
    return lambda rows: at(rows[:, :, None], places.clamp(min=0)[:, None, :]) & reached
