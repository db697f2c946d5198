"""Attention rows of a decoder layer for samples alike, from the rows that are left and the cache before them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import BLOCK_NUMBERS, attention_rows
from foveate.engine.cache import PrunedLayer
from foveate.families.base import Family
from foveate.methods.base import Queries

__all__ = ["LayerAttention", "past_keys"]


class LayerAttention:
    """Queries and keys of one layer and some samples, computed for what is asked and once.

    Args:
        family: Knows how the layer makes queries and keys.
        layer: The decoder layer, which has not run yet.
        hidden: Its input at these samples' rows, (samples, rows, width).
        rotary: (cos, sin) of these rows, (samples, rows, head size) each.
        vision: Which of the rows are the views' tokens, (samples, tokens) int64, ascending.
        past: Keys of earlier turns, (samples, key heads, slots, head size); None if there are none.
        sees: Says which slots, earlier turns' first, some of the rows see: (samples, those rows) int64 -> (samples,
            heads or 1, those rows, slots) bool. None: those up to their own.
        text_after: Text rows behind some of the views' tokens, the most that a sample has; None if the host does not
            know.
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
        text_after: Callable[[int, int], int | None],
    ) -> None:
        self._family = family
        self._layer = layer
        self._hidden = hidden
        self._rotary = rotary
        self._vision = vision
        self._past = past
        self._sees = sees
        self._text_after = text_after
        self._keys: Tensor | None = None

    def rows(self, queries: Queries, start: int, stop: int, bidirectional: bool) -> Iterator[Tensor]:
        """See `View.attention`, here with the samples in front; `start` and `stop` say which of the views' tokens.

        A sample with less text behind them than another has rows of zeros in the place of what it lacks.
        """
        columns, real = self._vision[:, start:stop], None
        samples, count = self._hidden.shape[:2]
        if start == stop:  # an image that has lost all its tokens
            return
        if queries == "vision":
            asking = columns
        elif queries == "last":
            asking = columns.new_full((samples, 1), count - 1)
        else:
            asking, real = self._behind(start, stop)
        if not asking.shape[1]:
            return
        query, keys, scaling = self._family.queries_and_keys(self._layer, self._hidden, asking, self._rotary)
        self._keys, before = keys, 0
        if self._past is not None:
            before = self._past.shape[2]
            keys = torch.cat((self._past.to(keys.dtype), keys), dim=2)
        both = bidirectional and queries == "vision"
        last: Tensor | None = None
        visible: Callable[[slice], Tensor] | None = None
        if self._sees is None:
            last = (columns[:, -1:].expand_as(asking) if both else asking) + before
        else:
            visible = self._visible(asking, columns if both else None, keys.shape[2], before)
        blocks = attention_rows(
            query.flatten(0, 1),
            keys.flatten(0, 1),
            scaling,
            last_key=last,
            visible=visible,
            block=max(BLOCK_NUMBERS, self._hidden.numel()),  # less than the layer itself will hold
            softcap=self._family.softcap(self._layer),
            samples=samples,
        )
        done, places = 0, (columns + before)[:, None]
        for probabilities in blocks:
            mean = probabilities.view(samples, -1, *probabilities.shape[1:]).mean(dim=1).take_along_dim(places, dim=2)
            del probabilities  # before the next block is made
            yield mean if real is None else mean * real[:, done : done + mean.shape[1], None]
            done += mean.shape[1]

    def _behind(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Text rows behind some tokens, as many in every sample; and which of them a sample has, None if all do."""
        rows = self._hidden.shape[1]
        places = torch.arange(rows, device=self._vision.device)
        text = self._vision.new_ones(len(self._vision), rows).scatter_(1, self._vision, 0)
        text = text * (places > self._vision[:, stop - 1 : stop])
        most = self._text_after(start, stop)
        if most is None:
            most = int(text.sum(dim=1).max())
        if len(text) == 1 or not most:
            return text.sort(dim=1, stable=True).indices[:, rows - most :], None
        real, order = text.sort(dim=1, stable=True)
        return order[:, rows - most :], real[:, rows - most :]

    def _visible(self, asking: Tensor, image: Tensor | None, slots: int, before: int) -> Callable[[slice], Tensor]:
        """Which slots some of the asking rows see; with all of an image whose rows look both ways."""
        sees = self._sees
        assert sees is not None
        if image is None:
            return lambda some: sees(asking[:, some])
        places = torch.arange(slots, device=asking.device) - before
        more = ((places >= image[:, :1]) & (places <= image[:, -1:]))[:, None, None]
        return lambda some: sees(asking[:, some]) | more

    def keys(self) -> Tensor:
        """Keys of the views' tokens after RoPE, mean over heads: (samples, tokens, head size) float32."""
        if self._keys is None:
            _, self._keys, _ = self._family.queries_and_keys(
                self._layer, self._hidden, self._vision[:, :0], self._rotary
            )
        return self._keys.take_along_dim(self._vision[:, None, :, None], dim=2).float().mean(dim=1)


def past_keys(
    cache: Any, index: int, samples: Tensor | slice, live: Tensor | None
) -> tuple[Tensor, Tensor, int, bool] | None:
    """Keys of earlier turns in a cache layer, for some samples; None if there are none.

    Args:
        cache: The model's cache, before this call's rows are in it.
        index: Which layer.
        samples: Which samples.
        live: (all samples, columns), nonzero where an unpruned column is no padding; None if all are.

    Returns:
        Keys, (samples, key heads, slots, head size), the unpruned column of each slot, (samples, slots) int64, −1 for a
        pad, how many columns there were, and whether any slot may be a pad.
    """
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    if layer is None or not layer.is_initialized or not layer.get_seq_length():
        return None
    count, seen, ragged = layer.keys.shape[0], layer.get_seq_length(), False
    if type(layer) is PrunedLayer:
        columns, ragged = layer.columns(0, count, layer.keys.device), layer.ragged
    else:
        columns = torch.arange(seen - layer.keys.shape[2], seen, device=layer.keys.device).expand(count, -1)
    if live is not None:
        real = live.to(columns.device).take_along_dim(columns.clamp(min=0), dim=1) != 0
        columns, ragged = columns.masked_fill(~real, -1), True
    return layer.keys[samples], columns[samples], seen, ragged
