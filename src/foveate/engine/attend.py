"""Attention rows of a decoder layer for one sample, from the rows that are left and the cache before them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import attention_rows
from foveate.engine.cache import PrunedLayer
from foveate.families.base import Family
from foveate.methods.base import Queries

__all__ = ["LayerAttention", "past_keys"]


class LayerAttention:
    """Queries and keys of one layer and one sample, computed for what is asked and once.

    Args:
        family: Knows how the layer makes queries and keys.
        layer: The decoder layer, which has not run yet.
        hidden: Its input at this sample's rows, (rows, width).
        rotary: (cos, sin) of these rows, (rows, head size) each.
        vision: Which of the rows are the view's tokens, (tokens,) int64, ascending.
        past: Keys of earlier turns that this sample's rows see, (key heads, slots, head size); None if there are none.
        sees: Says which slots, earlier turns' first, some of the rows see: (heads or 1, those rows, slots) bool. None:
            those up to their own.
    """

    def __init__(
        self,
        family: Family,
        layer: Any,
        hidden: Tensor,
        rotary: tuple[Tensor, Tensor],
        vision: Tensor,
        past: Tensor | None,
        sees: Callable[[Tensor], Tensor] | None,
    ) -> None:
        self._family = family
        self._layer = layer
        self._hidden = hidden
        self._rotary = rotary
        self._vision = vision
        self._past = past
        self._sees = sees
        self._keys: Tensor | None = None

    def rows(self, queries: Queries, start: int, stop: int, bidirectional: bool) -> Iterator[Tensor]:
        """See `View.attention`; `start` and `stop` say which of the view's tokens."""
        columns, count = self._vision[start:stop], self._hidden.shape[0]
        if not len(columns):  # an image that has lost all its tokens
            return
        if queries == "vision":
            asking = columns
        elif queries == "last":
            asking = torch.arange(count - 1, count, device=columns.device)
        else:
            text = torch.ones(count, dtype=torch.bool, device=columns.device)
            text[self._vision] = False
            asking = (text & (torch.arange(count, device=columns.device) > columns[-1])).nonzero()[:, 0]
        if not len(asking):
            return
        query, keys, scaling = self._family.queries_and_keys(self._layer, self._hidden, asking, self._rotary)
        self._keys, before = keys, 0
        if self._past is not None:
            before = self._past.shape[1]
            keys = torch.cat((self._past.to(keys.dtype), keys), dim=1)
        both, softcap = bidirectional and queries == "vision", self._family.softcap(self._layer)
        if self._sees is None:
            last = (columns[-1].expand(len(asking)) if both else asking) + before
            blocks = attention_rows(query, keys, scaling, last_key=last, softcap=softcap)
        else:
            sees, slots = self._sees, torch.arange(keys.shape[1], device=keys.device) - before
            more = both & (slots >= columns[0]) & (slots <= columns[-1])  # all of the image
            visible = lambda some: sees(asking[some]) | more  # noqa: E731
            blocks = attention_rows(query, keys, scaling, visible=visible, softcap=softcap)
        for probabilities in blocks:
            mean = probabilities.mean(dim=0)[:, columns + before]
            del probabilities  # before the next block is made
            yield mean

    def keys(self) -> Tensor:
        """Keys of the view's tokens after RoPE, mean over heads: (tokens, head size) float32."""
        if self._keys is None:
            _, self._keys, _ = self._family.queries_and_keys(self._layer, self._hidden, self._vision[:0], self._rotary)
        return self._keys[:, self._vision].float().mean(dim=0)


def past_keys(cache: Any, index: int, sample: int, live: Tensor | None) -> tuple[Tensor, Tensor, int] | None:
    """Keys of earlier turns in a cache layer, for one sample; None if there are none.

    Args:
        cache: The model's cache, before this call's rows are in it.
        index: Which layer.
        sample: Which sample.
        live: (columns,) bool, which unpruned columns are no padding; None if all are.

    Returns:
        Keys, (key heads, slots, head size), the unpruned column of each slot, (slots,) int64, and how many there were.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    if layer is None or not layer.is_initialized or not layer.get_seq_length():
        return None
    keys: Tensor = layer.keys[sample]
    if type(layer) is PrunedLayer:
        columns = layer.columns(0, layer.keys.shape[0], keys.device)[sample]
    else:
        columns = torch.arange(layer.get_seq_length() - keys.shape[1], layer.get_seq_length(), device=keys.device)
    real = columns >= 0
    if live is not None:
        real = real & live.to(keys.device)[columns.clamp(min=0)]
    return keys[:, real], columns[real], layer.get_seq_length()
