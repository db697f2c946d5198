"""Attention rows of a decoder layer for samples alike, from the rows that are left and the cache before them."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foveate.core.attention import BLOCK_NUMBERS, attention_rows
from foveate.engine.cache import PrunedLayer
from foveate.engine.forms import Heads, Queries

__all__ = ["AttentionReader", "past_keys"]


class AttentionReader:
    """Attention rows of one layer and some samples, from queries and keys of what is asked for.

    Args:
        ask: Answers queries of some rows and keys of all, as `Family.queries_and_keys` does, for (samples, …) int64.
        count: Rows of each sample, pads in front included.
        vision: Which of the rows are the views' tokens, (samples, tokens) int64, ascending.
        past: Keys of earlier turns, (samples, key heads, slots, head size); None if there are none.
        sees: Says which slots, earlier turns' first, some of the rows see: (samples, those rows) int64 -> (samples,
            heads or 1, those rows, slots) bool. None: those up to their own.
        real: Answers which of the rows are no padding, (samples, rows) bool; None if all are.
        text_after: As many text rows as stand behind some of the views' tokens in any sample, or more; and whether that
            many do in all.
        softcap: See `attention_rows`.
        block: Float32 numbers of a block of rows.
    """

    def __init__(
        self,
        ask: Callable[[Tensor], tuple[Tensor, Tensor, float]],
        count: int,
        vision: Tensor,
        past: Tensor | None,
        sees: Callable[[Tensor], Tensor] | None,
        real: Callable[[], Tensor] | None,
        text_after: Callable[[int, int], tuple[int, bool]],
        softcap: float | None,
        block: int,
    ) -> None:
        self._ask = ask
        self._count = count
        self._vision = vision
        self._past = past
        self._sees = sees
        self._real = real
        self._text_after = text_after
        self._softcap = softcap
        self._block = block
        self._keys: Tensor | None = None

    def rows(
        self, queries: Queries, start: int, stop: int, bidirectional: bool, heads: Heads = "mean"
    ) -> Iterator[Tensor]:
        """See `EngineView.attention`, the samples in front; `start` and `stop` say which of the views' tokens.

        A sample with less text behind them than another has rows of zeros in the place of what it lacks.
        """
        columns, real = self._vision[:, start:stop], None
        samples = len(columns)
        if start == stop:  # an image that has lost all its tokens
            return
        if queries == "vision":
            asking = columns
        elif queries == "last":
            asking = columns.new_full((samples, 1), self._count - 1)
        else:
            asking, real = self._behind(start, stop)
        if not asking.shape[1]:
            return
        query, keys, scaling = self._ask(asking)
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
            block=max(BLOCK_NUMBERS, self._block),
            softcap=self._softcap,
            samples=samples,
        )
        done, places = 0, (columns + before)[:, None]
        for probabilities in blocks:
            of_heads = probabilities.view(samples, -1, *probabilities.shape[1:])
            reduced = of_heads.mean(dim=1) if heads == "mean" else of_heads.amax(dim=1)
            mean = reduced.take_along_dim(places, dim=2)
            del probabilities, of_heads, reduced  # before the next block is made
            yield mean if real is None else mean * real[:, done : done + mean.shape[1], None]
            done += mean.shape[1]

    def _behind(self, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
        """Text rows behind some tokens, as many in every sample; and which of them a sample has, None if all do."""
        rows = self._count
        places = torch.arange(rows, device=self._vision.device)
        text = self._vision.new_ones(len(self._vision), rows).scatter_(1, self._vision, 0)
        text = text * (places > self._vision[:, stop - 1 : stop])
        if self._real is not None:  # a padding row whose output is read asks for nothing
            text = text * self._real()
        most, exact = self._text_after(start, stop)
        real, order = text.sort(dim=1, stable=True)
        return order[:, rows - most :], None if exact else real[:, rows - most :]

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
            _, self._keys, _ = self._ask(self._vision[:, :0])
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
