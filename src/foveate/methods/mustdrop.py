"""MustDrop: merge in the vision tower, filter by text in prefill, shrink the KV cache for decoding.

Paper: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
arXiv:2411.10803. Constants the paper leaves open are those of the released code.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.core.budget import mean_tokens
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.merge import average, merge_windows, window_similarity
from foveate.core.rank import top
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method, Preset
from foveate.methods.schedule import Budget, geometric_counts
from foveate.methods.settings import Count, Counts, Layers, Positions, Share
from foveate.methods.stages import (
    Arriving,
    Attention,
    CacheStage,
    ImageStage,
    ImageView,
    LayerStage,
    LayerView,
    PatchView,
    Shape,
    Stage,
    TowerAttention,
    TowerStage,
)

__all__ = ["METHOD", "MustDrop", "counter"]

DEPTH, LAYERS = 32, (2, 6, 10, 14)  # the released code's decoder and its cuts
REFERENCE = 576
SHARE = Attention(rows="after", over="share")
"""Of all the attention that text pays to an image, what each token gets."""
PEAK = Attention(rows="after", over="max")
"""The most that a single text token pays to each."""


class MustDrop(Method):
    """Drops over a token's whole life: window merging, a dual attention filter, and a final set for decoding.

    A vision token is dropped at a cut if the text gives it little attention in all (a share below `global_thr`) and no
    single text token looks at it (below `individual_thr`); the key tokens the tower's CLS attends to always stay.

    Attributes:
        global_thr: γ, a share of the attention all vision tokens get.
        individual_thr: α, an attention probability.
        pruning_layers: Decoder layers whose attention filters; the cut is before the layer after each. With a
            retention, by default, the released code's scaled to the decoder's depth.
        merge_windows: Merge windows of near-identical patches behind the tower's first layer.
        merge_threshold: Mean cosine from which a window is merged.
        merge_window: Side of a window, in patches.
        key_rate: Share of the tokens that is never dropped.
        filter: Drop in prefill.
        kv: Cut the cache of the filtering layers to the final tokens before decoding.
        mode: "threshold" drops by γ and α, so counts depend on picture and question; "budget" keeps the key tokens and
            the highest scores (share, or attention over α/γ, whichever is more) up to exact `counts`.
        counts: Tokens left at each cut in budget mode, for an image of `reference` tokens; others get their share.
        reference: Vision tokens of the image `counts` is for.
        retention: Instead of `counts`: the share of an image's tokens a layer processes on average. The counts then
            fall geometrically from what the tower's merging leaves of that image, so that every image meets it.
        tokens: The same as a number of tokens.
        depth: Decoder layers that `retention` averages over; 0: the model's.
        positions: "reindex" numbers rows anew after every cut (the released code), "keep" keeps position ids, and a
            merged token has its window's centre. Families with M-RoPE always keep.
        alpha_relative: Read `individual_thr` as a share of the largest attention any vision token gets.

    Raises:
        SettingError: If settings contradict each other or leave their range.
    """

    name = "mustdrop"
    schedule: ClassVar[tuple[str, ...]] = ("mode", "counts", "reference", "depth")

    global_thr: Annotated[float, Ge(0)] = 0.001
    individual_thr: Annotated[float, Ge(0)] = 0.001
    pruning_layers: Layers | None = None
    merge_windows: bool = True
    merge_threshold: float = 0.8
    merge_window: Annotated[int, Ge(2)] = 3
    key_rate: Share = 0.08
    filter: bool = True
    kv: bool = True
    mode: Literal["threshold", "budget"] = "threshold"
    counts: Counts = ()
    reference: Annotated[int, Ge(1)] = REFERENCE
    retention: Share = 0.0
    tokens: Count = 0
    depth: Annotated[int, Ge(0)] = DEPTH
    positions: Positions = "reindex"
    alpha_relative: bool = False

    def check_settings(self) -> None:
        budget = self.retention or self.tokens
        if self.pruning_layers is None and not budget:
            self._set(pruning_layers=LAYERS)
        if self.pruning_layers == ():
            raise SettingError("pruning_layers are decoder layers from 0 on, one or more; got ().")
        if budget and self.counts:
            raise SettingError(
                f"A budget is solved for counts, so these cannot be given too; got counts={self.counts}."
            )
        if self.retention and self.tokens:
            raise SettingError(f"Give one of tokens= and retention=; got {self.tokens} and {self.retention}.")
        wanted = 0 if budget else len(self.pruning_layers or ())
        if self.mode == "budget" and len(self.counts) != wanted:
            raise SettingError(
                f"Budget mode needs a count for each of the {wanted} pruning layers, or a retention; "
                f"got counts {self.counts} and retention {self.retention}."
            )
        if self.mode == "threshold" and (self.counts or budget):
            raise SettingError(
                f"counts and retention belong to mode='budget'; got {self.counts} and {self.retention} with "
                "mode='threshold'."
            )
        if self.mode == "budget" and self.global_thr == 0:
            raise SettingError("Budget mode weighs the two attentions by individual_thr / global_thr; global_thr is 0.")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        positions: Literal["renumber", "keep"] = "renumber" if self.positions == "reindex" else "keep"
        ascending = positions == "keep" or not shape.renumbers
        stages: list[Stage] = []
        if self.merge_windows:
            stages.append(TowerStage(1, choose=self._merge, positions=positions))
        if self.merge_windows or (self.filter and self.key_rate > 0):
            paid = TowerAttention(by="cls" if shape.cls else "patches", layer=1)
            mark = partial(self._mark, ascending)
            stages.append(ImageStage(reads=(paid,), choose=mark, count=all_stay, positions=positions))
        if not self.filter:
            return tuple(stages)
        layers = self._layers(shape.depth)
        for index, layer in enumerate(layers):
            choose = self._filter if self.mode == "threshold" else partial(self._highest, shape.depth, index)
            stages.append(LayerStage(layer + 1, reads=(SHARE, PEAK), choose=choose, unit="image", positions=positions))
        if self.kv:
            stages.append(CacheStage(first_layer=layers[0]))
        return tuple(stages)

    # -- the tower ---------------------------------------------------------------------------------------------

    def _merge(self, view: PatchView, _: int | None) -> Cut | None:
        """Near-identical patches become one."""
        if min(view.grid) < self.merge_window:
            return None
        similarity = window_similarity(view.patches, *view.grid, self.merge_window)
        merged = (similarity >= self.merge_threshold).sum()
        left = len(view) - merged * (self.merge_window**2 - 1)

        merge = partial(self._windows, view.grid)
        return Cut.fewer(len(view), left, merge, view.patches, similarity, merged)

    def _windows(self, grid: Grid, patches: Tensor, similarity: Tensor, merged: Tensor) -> Cut:
        """The most similar windows become one patch each."""
        windows = merge_windows(similarity, merged, *grid, self.merge_window)
        return windows.with_rows(average(patches, windows))

    def _mark(self, ascending: bool, view: ImageView, _: int | None) -> Cut:
        """Mark the key tokens; where positions are kept, put merged rows where they stand for."""
        none = torch.zeros(len(view), dtype=torch.bool, device=view.features.device)
        key = none.scatter(0, top(view.attention, math.ceil(self.key_rate * len(view))), True)
        if not (view.merged and ascending):
            return Cut.stay(len(view), {"key": key})
        order = view.tokens.argsort()
        return Cut.take(order, len(view), {"key": key[order]})

    # -- prefill -----------------------------------------------------------------------------------------------

    def _filter(self, view: LayerView, _: int | None) -> Cut | None:
        """Drop the tokens that get little attention from text; where there is no text behind, all stay."""
        if not view.text_behind:
            return None
        # A window may hide an image from all text: then shares are 0 / 0, and nothing is below a threshold.
        lazy = (view[SHARE] < self.global_thr) & (self._peak(view) < self.individual_thr)
        return Cut.keep(~lazy | view.notes["key"] if "key" in view.notes else ~lazy)

    def _highest(self, depth: int, index: int, view: LayerView, _: int | None) -> Cut | None:
        """Keep the key tokens and the highest scores, up to an exact count."""
        count = min(len(view), self._counts(depth, view.arriving)[index])
        if not view.text_behind or count == len(view):
            return None
        scores = view[SHARE]
        if self.individual_thr:
            scores = torch.maximum(scores, self._peak(view) * (self.global_thr / self.individual_thr))
        if "key" in view.notes:
            scores = scores.masked_fill(view.notes["key"], float("inf"))
        return Cut.take(top(scores, count), len(view))

    def _peak(self, view: LayerView) -> Tensor:
        """The largest attention that each token gets from one of the text's, in the unit of `individual_thr`."""
        peak = view[PEAK]
        if not self.alpha_relative or not len(peak):
            return peak
        return peak / peak.amax(dim=0).clamp(min=1e-12)

    def _counts(self, depth: int, arriving: Arriving) -> tuple[int, ...]:
        """Tokens left at each cut in budget mode."""
        marks = self.merge_windows or (self.filter and self.key_rate > 0)
        keys = math.ceil(self.key_rate * arriving.started) if marks else 0
        if self.retention or self.tokens:
            cuts = [layer + 1 for layer in self._layers(depth)]
            mean = min(self.tokens, arriving.entered) if self.tokens else self.retention * arriving.entered
            return geometric_counts(mean, arriving.started, self.depth or depth, cuts, keys)
        scaled = (math.floor(count * arriving.entered / self.reference + 0.5) for count in self.counts)
        return tuple(max(1, keys, count) for count in scaled)

    def _layers(self, depth: int) -> tuple[int, ...]:
        return scaled_layers(depth) if self.pruning_layers is None else self.pruning_layers

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        Budget(tokens, retention)
        count = 0 if tokens is None else max(1, round(tokens))
        layers = None if self.pruning_layers == LAYERS else self.pruning_layers
        return replace(self, mode="budget", pruning_layers=layers, depth=0, tokens=count, retention=retention or 0.0)

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        entering: int | None = None,
        key_rate: float = 0.08,
        **values: Any,
    ) -> Self:
        """Budget mode: geometric counts N · q^i at the cuts of 32 layers, scaled. See `Method.solved`.

        The key rate is lowered where the key tokens alone exceed the budget. N is every image's own, so that all meet
        the budget (one whose merging leaves less keeps all it has), unless `entering` gives it.
        """
        layers = values.pop("pruning_layers", None) or scaled_layers(depth)
        full = entered or REFERENCE
        mean, start = share * full, entering or full
        first = layers[0] + 1
        floor = (first * start + (depth - first)) / depth
        if mean < floor:
            raise BudgetError(
                f"MustDrop cannot average {mean:.4g} of {full} vision tokens on {depth} layers: its first cut is "
                f"before layer {first}, so its floor is {floor:.1f} tokens. Ask for more, or give earlier "
                "pruning_layers.",
                floor=floor / full,
            )
        most_keys = (depth * mean - first * start) / (depth - first)
        key_rate = min(key_rate, math.floor(most_keys) / start)
        values = {"mode": "budget", "pruning_layers": layers, "key_rate": key_rate, "depth": depth, **values}
        if entering is None and values.get("merge_windows", True):
            return cls(retention=share, **values)
        cuts, keys = [layer + 1 for layer in layers], math.ceil(key_rate * start)
        return cls(counts=geometric_counts(mean, start, depth, cuts, keys), reference=full, **values)


def all_stay(arriving: Arriving) -> int:
    """As many as arrive."""
    return arriving.tokens


def scaled_layers(depth: int) -> tuple[int, ...]:
    """The released code's layers in a decoder of another depth; some coincide in the shallowest."""
    return tuple(dict.fromkeys(round(layer * depth / DEPTH) for layer in LAYERS))


def counter(per_layer: Sequence[float]) -> float:
    """The released code's mean, which books a layer after its cut: for comparison with published budgets.

    `per_layer` are the vision tokens each decoder layer really processes; their plain mean is the true figure.
    """
    return mean_tokens([*per_layer[1:], per_layer[-1]])


def _preset(name: str, gamma: float, alpha: float) -> Preset:
    method = MustDrop(global_thr=gamma, individual_thr=alpha)
    return Preset(f"mustdrop/llava-1.5-7b/{name}", method, DEPTH, REFERENCE, "released code")


MustDrop.presets = (
    _preset("192-textvqa", 0.001, 0.001),
    _preset("128-textvqa", 0.0012, 0.001),
    _preset("64-textvqa", 0.011, 0.01),
    _preset("64-vizwiz", 0.005, 0.001),
)

METHOD = MustDrop
