"""A cache layer that stores what was kept and speaks in unpruned columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from foveate.errors import SessionError, UnsupportedError

__all__ = ["PrunedLayer", "check_cache", "pruned_layer"]

T = TypeVar("T")
KNOWN = (DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer)


class PrunedLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of the kept tokens of one decoder layer.

    Its lengths are those of the unpruned sequence, so the model's own masks and positions stay right. A layer with a
    sliding window keeps at most `window − 1` slots between calls, as transformers' own does: no later row sees more.

    Attributes:
        base: (samples, slots) int64, the unpruned column of each of the first slots, −1 for a pad. The
            slots after them (the tail: decoded tokens, later text) follow column by column.
        base_end: The unpruned column where the tail begins.
        ragged: Whether any slot is a pad.
        seen: The unpruned length.
        window: Unpruned columns a row sees, its own included; None if all.
        record_past: Whether slots behind the window wait for `crop` before they leave.
        shift: (samples,) int64, how far positions have moved up on this layer, where rows are numbered anew; else None.
    """

    is_croppable = True

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = layer.keys, layer.values, layer.is_initialized
        if self.is_initialized:
            self.dtype, self.device = layer.dtype, layer.device
        self.is_sliding = layer.is_sliding  # which mask the model builds for layers of this type
        self.window: int | None = getattr(layer, "sliding_window", None)
        self.record_past: bool = getattr(layer, "record_past", False)
        self.seen: int = layer.get_seq_length()
        self.base: Tensor | None = None
        self.base_end = self.seen - layer.keys.shape[-2] if self.seen else 0
        self.ragged = False
        self.shift: Tensor | None = None
        self._pruned = False
        self._announced: tuple[Tensor | None, int, bool] | None = None

    def announce(self, columns: Tensor | None, span: int, ragged: bool = False) -> None:
        """Say what the next `update` brings.

        Args:
            columns: Unpruned columns of its rows, (samples, rows), −1 for a pad; None: the next `span` ones.
            span: Unpruned columns the call covers.
            ragged: Whether any row is a pad.
        """
        self._announced = columns, span, ragged

    def columns(self, coming: Tensor | int, samples: int, device: torch.device) -> Tensor:
        """The unpruned column of every slot once `coming` (columns, or how many next ones) are there.

        Shape: (samples, slots) int64, −1 for a pad.
        """
        if isinstance(coming, int):
            coming = torch.arange(self.seen, self.seen + coming, device=device).expand(samples, -1)
        if self.seen == 0:
            return coming
        tail = torch.arange(self.base_end, self.seen, device=device).expand(samples, -1)
        stored = (tail,) if self.base is None else (self.base, tail)
        return torch.cat((*stored, coming), dim=1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values, (samples, heads, rows, head size), and return all.

        Raises:
            SessionError: If a pruned layer is used outside `foveate.drop`.
        """
        if self._announced is None and self._pruned:
            raise SessionError(
                "This cache was pruned by foveate and is used outside its context: masks would be wrong. "
                "Go on inside `with foveate.drop(model, method)`, or start from a fresh cache."
            )
        columns, span, ragged = self._announced or (None, key_states.shape[-2], False)
        plain, self._announced = self._announced is None, None
        if columns is not None:
            self.base = self._and_these(columns)
            self.base_end = self.seen + span
            self.ragged |= ragged
            self._pruned = True
        self.seen += span
        keys, values = super().update(key_states, value_states)
        if self.window is not None and not self.record_past:
            self._evict()
        elif self.window is not None and plain:  # outside the context masks are of the window's size
            reach = self.window - 1 + span
            return keys[..., -reach:, :], values[..., -reach:, :]
        return keys, values

    def _and_these(self, coming: Tensor) -> Tensor:
        """The columns of all slots once these have come."""
        if self.seen == 0:
            return coming
        alike = "joined", self.base, self.base_end, self.seen
        return _once(coming, alike, lambda: self.columns(coming, coming.shape[0], coming.device))

    def _evict(self) -> None:
        """Let go of slots that no later row sees: all but the last `window − 1`.

        Slots ascend in columns, so those before them are behind the window in every sample.
        """
        assert self.window is not None
        gone = self.keys.shape[-2] - (self.window - 1) if self.is_initialized else 0
        if gone <= 0:
            return
        self.keys, self.values = self.keys[..., gone:, :], self.values[..., gone:, :]
        held = 0 if self.base is None else self.base.shape[1]
        if gone < held:
            assert self.base is not None
            base = self.base
            self.base = _once(base, ("without first", gone), lambda: base[:, gone:])
        else:
            self.base, self.ragged = None, False
            self.base_end += gone - held

    def get_seq_length(self) -> int:
        """The unpruned length."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns that the model's own masks cover, and how many come before them: all, or those of the window."""
        before = 0 if self.window is None else max(0, self.seen - self.window + 1)
        return self.seen - before + query_length, before

    def valid_slots(self) -> Callable[[], list[int]]:
        """Counts, when it is called, the slots of each sample that are no pads now: asking the device can wait."""
        return partial(_valid, self.base, self.keys.shape[0], self.keys.shape[-2])

    def activate_past_recording(self) -> None:
        """From now on slots behind the window wait for `crop`, so that tokens can be taken back."""
        self.record_past = True

    def reset(self) -> None:
        super().reset()
        self.keys, self.values, self.is_initialized = None, None, False  # transformers 5.16 fills them with zeros
        self.seen, self.base, self.base_end, self.ragged, self._announced, self.shift = 0, None, 0, False, None, None
        self._pruned = False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)
        if self.base is not None:
            self.base = self.base.index_select(0, beam_idx.to(self.base.device))
        if self.shift is not None:
            self.shift = self.shift.index_select(0, beam_idx.to(self.shift.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        if self.base is not None:
            self.base = self.base.repeat_interleave(repeats, dim=0)
        if self.shift is not None:
            self.shift = self.shift.repeat_interleave(repeats, dim=0)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        if self.base is not None:
            self.base = self.base[indices.to(self.base.device), ...]
        if self.shift is not None:
            self.shift = self.shift[indices.to(self.shift.device)]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` unpruned columns (a negative number, as transformers has it)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the number of tokens to remove; got {tokens_to_remove}.")
        tokens_to_remove = int(tokens_to_remove)  # transformers 5.16 hands in a tensor
        if tokens_to_remove and self.window is not None and not self.record_past and self.seen >= self.window:
            raise UnsupportedError(
                f"A layer with a sliding window of {self.window} tokens has let go of what came before them, so no "
                "token can be taken back. Call activate_past_recording on the cache before the prompt."
            )
        end = self.seen + tokens_to_remove
        from_tail = min(-tokens_to_remove, self.seen - self.base_end)
        if from_tail:
            self.keys, self.values = self.keys[..., :-from_tail, :], self.values[..., :-from_tail, :]
        if self.base is not None and end < self.base_end:
            self._crop_base(end)
        self.seen = end
        if self.window is not None:
            self._evict()

    def _crop_base(self, end: int) -> None:
        """Remove the slots of columns from `end` on, which differ in number between samples."""
        assert self.base is not None
        stays = (self.base < end) & (self.base >= 0)
        counts = stays.sum(dim=1).tolist()
        self._keep_slots(_Chosen.of(self.base, 0, stays, max(counts), ragged=min(counts) < max(counts)))
        self.base_end = end

    def keep(self, wanted: Tensor, counts: Sequence[int]) -> None:
        """Of the rows that came last, keep only these.

        LayerRunner that hold the same columns, and get the same tensor, share what is worked out.

        Args:
            wanted: (samples, rows) bool, in the order they came.
            counts: How many of them each sample has.
        """
        alike = "kept", self.base, self.base_end, self.seen, self.keys.shape[-2], self.ragged
        chosen = _once(wanted, alike, lambda: self._chosen(wanted, counts))
        self.base_end, self._pruned = self.seen, True
        self._keep_slots(chosen)

    def _chosen(self, wanted: Tensor, counts: Sequence[int]) -> "_Chosen":
        columns = self.columns(0, wanted.shape[0], wanted.device)
        rows = min(wanted.shape[1], columns.shape[1])  # some may be behind the window already, nobody knows which
        earlier = columns.shape[1] - rows
        stays = wanted[:, wanted.shape[1] - rows :] & (columns[:, earlier:] >= 0)
        most = min(rows, max(counts))
        even = rows == wanted.shape[1] and min(counts) == most
        return _Chosen.of(columns, earlier, stays, most, ragged=not even or (earlier > 0 and self.ragged))

    def _keep_slots(self, chosen: "_Chosen") -> None:
        """Keep these slots and no others."""
        self.base, self.ragged = chosen.base, chosen.ragged
        self.keys, self.values = chosen.of_states(self.keys), chosen.of_states(self.values)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Which of a layer's slots stay.

    Attributes:
        base: (samples, slots) int64, their columns, −1 for a pad.
        order: (samples, slots) int64, where they are now.
        ragged: Whether any may be a pad.
    """

    base: Tensor
    order: Tensor
    ragged: bool

    @classmethod
    def of(cls, columns: Tensor, earlier: int, stays: Tensor, most: int, ragged: bool) -> Self:
        """The `earlier` first slots as they are, and those that stay of the others, padded anew on the left.

        Args:
            columns: (samples, slots) int64, what the slots hold now.
            earlier: How many of them stay as they are.
            stays: (samples, other slots) bool.
            most: The most of these that any sample has, or more.
            ragged: Whether any slot may be a pad then.
        """
        rows = stays.shape[1]
        order = torch.sort(stays.long(), dim=1, stable=True).indices[:, rows - most :]
        pads = ~stays.gather(1, order)
        order = order + earlier
        if earlier:
            first = torch.arange(earlier, device=order.device).expand(len(order), -1)
            order, pads = torch.cat((first, order), dim=1), torch.cat((columns[:, :earlier] < 0, pads), dim=1)
        return cls(columns.gather(1, order).masked_fill(pads, -1), order, ragged)

    def of_states(self, states: Tensor) -> Tensor:
        """Keys or values of what stays, from (samples, heads, slots, head size)."""
        order = self.order.to(states.device)
        samples, heads = (torch.arange(size, device=states.device) for size in states.shape[:2])
        return states[samples[:, None, None], heads[:, None], order[:, None]]


def _once(on: Tensor, key: tuple[Any, ...], make: Callable[[], T]) -> T:
    """What `make` answers, made once for all layers with the same key, of the same tensor objects; kept on `on`."""
    known: list[tuple[tuple[Any, ...], T]] = on.__dict__.setdefault("_foveate_known", [])
    for other, made in known:
        if other[0] == key[0] and all(_same(*pair) for pair in zip(key, other, strict=True)):
            return made
    known.append((key, make()))
    return known[-1][1]


def _same(one: Any, other: Any) -> bool:
    return one is other or (not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other))


def _valid(base: Tensor | None, samples: int, slots: int) -> list[int]:
    pads = [0] * samples if base is None else (base < 0).sum(dim=1).tolist()
    return [slots - pad for pad in pads]


def check_cache(cache: Any) -> None:
    """Refuse a cache that cannot hold layers of different lengths, before anything was written to it.

    Raises:
        UnsupportedError: If the cache is static, quantised, offloaded or of an unknown kind.
    """
    if cache is None:
        return
    if not isinstance(cache, Cache):
        raise UnsupportedError(
            f"past_key_values is a {type(cache).__name__}; foveate needs a transformers DynamicCache."
        )
    if cache.offloading:
        raise UnsupportedError("Offloaded caches are not supported while tokens are dropped; use a DynamicCache.")
    kinds = {type(layer) for layer in cache.layers} or {cache.layer_class_to_replicate}
    odd = sorted(kind.__name__ for kind in kinds - {*KNOWN, PrunedLayer})
    if odd:
        raise UnsupportedError(
            f"The cache has layers of type {', '.join(odd)}, which cannot differ in length. Use a DynamicCache: "
            "leave cache_implementation unset, or pass past_key_values=DynamicCache(config=model.config)."
        )


def pruned_layer(cache: Any, index: int) -> PrunedLayer:
    """The pruned layer at `index`, put in the place of the cache's own if need be."""
    while len(cache.layers) <= index:
        cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if type(layer) is PrunedLayer:
        return layer
    cache.layers[index] = PrunedLayer(layer)
    pruned: PrunedLayer = cache.layers[index]
    return pruned
