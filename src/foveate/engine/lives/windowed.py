"""Decode: a cache layer whose rows see a sliding window. Rows that no later one sees leave it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import DynamicSlidingWindowLayer
from foveate.core.tensors import Change, Memo, on_tensors
from foveate.engine.lives.bare import SHIFT, Coming, PrunedLayer
from foveate.engine.lives.chosen import Chosen
from foveate.errors import SessionError, UnsupportedError


class WindowedLayer(PrunedLayer):
    """A `PrunedLayer` whose rows see a sliding window.

    It keeps at most `window − 1` slots between calls, as transformers' own does: no later row sees more.

    Attributes:
        record_past: Whether slots outside the window are kept until `crop`.
        waits: Whether slots outside the window stay until `release`: a cut of the cache may bring them into it again.
        windowed: Whether a window has ever counted other columns than `base`.
        disorder: See `Rows`; of any rows in `base`.
        is_pruned: Whether the layer was ever without some column; the window may have evicted all others.
    """

    is_sliding = True  # which mask the model builds for layers of this type

    window: int
    waits = windowed = disorder = is_pruned = False
    _order: Tensor | None = None  # places of the slots that the last update left, among the `_before` that it had
    _before = 0

    def __init__(self, layer: DynamicSlidingWindowLayer, memo: Memo | None = None) -> None:
        super().__init__(layer, memo)
        self.window = layer.sliding_window
        self.record_past: bool = getattr(layer, "record_past", False)

    def _take_old(self, state: dict[str, Any]) -> None:
        """As of `PrunedLayer`. Refuse a layer that lost rows when windows counted other columns."""
        if state.get("base") is not None:
            raise SessionError(
                "This cache was saved by an older foveate, whose sliding windows counted stored tokens after dropping. "
                "Make it anew from the prompt."
            )
        super()._take_old(state)
        self.window, self.record_past = state["window"], state["record_past"]
        self.is_pruned = state.get("_pruned", False)

    def announce(self, columns: Tensor | None, span: int, *more: Any, **named: Any) -> None:
        """As of `PrunedLayer`."""
        super().announce(columns, span, *more, **named)
        coming = self._announced
        if coming is not None and coming.window_columns is not None:
            self.windowed = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As of `PrunedLayer`. The rows that come see all slots that were there before."""
        self._order = None
        keys, values = super().update(key_states, value_states)
        if self.waits:
            return keys, values
        if not self.record_past:
            self._evict()
        elif not self._inside:  # outside the context, masks have the window's size
            reach = self.window - 1 + key_states.shape[-2]
            return keys[..., -reach:, :], values[..., -reach:, :]
        return keys, values

    def _join(self, columns: Tensor, coming: Coming) -> None:
        super()._join(columns, coming)
        self.disorder, self.is_pruned = self.disorder or coming.disorder, True

    def await_steps(self) -> None:
        """Nothing: a window's rows leave, so none is written behind the others."""

    def follow(self, change: Change, rows: bool = True, reorders: bool = False) -> None:
        """As of `PrunedLayer`."""
        super().follow(change, rows, reorders)
        self._order = on_tensors(self._order, change)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many columns the model's own masks cover, and how many come before them."""
        before = max(0, self.seen - self.window + 1)
        return self.seen - before + query_length, before

    def activate_past_recording(self) -> None:
        """Keep slots outside the window until `crop`, so that tokens can be taken back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """As of `PrunedLayer`. Without `record_past`, only while the window has discarded nothing."""
        if tokens_to_remove < 0 and not self.record_past and self.seen >= self.window:
            raise UnsupportedError(
                f"A layer with a sliding window of {self.window} tokens has discarded all earlier tokens, so the cache "
                "cannot be cropped. Call activate_past_recording on the cache before the prompt."
            )
        super().crop(tokens_to_remove)
        self._evict()

    def keep(self, wanted: Tensor, counts: Sequence[int]) -> None:
        """As of `PrunedLayer`."""
        super().keep(wanted, counts)
        self.is_pruned = True

    def count_anew(self, rows: int, shift: Tensor) -> None:
        """As of `PrunedLayer`."""
        super().count_anew(rows, shift)
        self.windowed = True

    def _choose(self, wanted: Tensor, counts: Sequence[int], earlier: int) -> Chosen:
        order, before = self._order, self._before
        if order is None:
            return super()._choose(wanted, counts, earlier)

        def choose() -> Chosen:  # the window may have evicted any of them
            columns = self.columns(0, wanted.shape[0], wanted.device)
            place = order - (before - wanted.shape[1])  # below 0: of an earlier turn
            stays = (place < 0) | wanted.gather(1, place.clamp(min=0))
            return Chosen.of(columns, 0, stays & (columns >= 0), stays.shape[1], ragged=True)

        return self.memo.once(choose, "kept", wanted, self.base, self.base_end, self.seen, self.slots, order)

    def release(self) -> None:
        """Remove slots that the layer has waited to remove."""
        if self.waits and not self.record_past:
            self._evict()
        self.waits = False

    def reset(self) -> None:
        super().reset()
        self.disorder = self.is_pruned = False

    def _evict(self) -> None:
        """Remove slots that no later row sees: all but the last `window − 1`.

        Slots ascend in columns, so the earlier ones are outside the window in every sample. In disorder, those are that
        have the lowest of the columns that the window counts.
        """
        gone = self.slots - (self.window - 1)
        if gone <= 0:
            return
        base, behind = self.base, self.beside.get(SHIFT)
        held = 0 if base is None else base.shape[1]
        if base is not None and behind is not None and self.disorder and gone < held:
            self._evict_lowest(base, behind, gone)
            return
        self.keys = self.keys[..., gone:, :]
        self.values = self.values[..., gone:, :]
        if base is not None and gone < held:
            self.base = self._without_first(base, gone)
            self.beside = {name: self._without_first(values, gone) for name, values in self.beside.items()}
        else:
            self.base, self.ragged, self.disorder, self.beside = None, False, False, {}
            self.base_end += gone - held

    def _without_first(self, values: Tensor, gone: int) -> Tensor:
        return self.memo.once(lambda: values[:, gone:], "without first", values, gone)

    def _evict_lowest(self, base: Tensor, behind: Tensor, gone: int) -> None:
        """Remove the `gone` slots with the lowest columns that the window counts, pads first. The tail has none."""
        total = self.keys.shape[-2]

        def choose() -> Chosen:
            counted = (base - behind).masked_fill(base < 0, -1)
            order = counted.sort(dim=1, stable=True).indices[:, gone:].sort(dim=1).values
            tail = torch.arange(base.shape[1], total, device=order.device).expand(len(order), -1)
            return Chosen(base.gather(1, order), torch.cat((order, tail), dim=1), self.ragged)

        chosen = self.memo.once(choose, "lowest", base, behind, gone, total, self.ragged)
        in_base, before = chosen.order[:, : chosen.base.shape[1]], self.beside
        gather = lambda: {name: values.gather(1, in_base) for name, values in before.items()}  # noqa: E731
        self.beside = self.memo.once(gather, "lowest beside", chosen, *before.values())
        self._keep_slots(chosen)
        self._order, self._before = chosen.order, total
