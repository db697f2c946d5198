"""MustDrop: merge in the vision tower, filter by text in prefill, shrink the KV cache for decoding.

Paper: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
arXiv:2411.10803. Constants the paper leaves open are those of the released code.

    (a) Tower: each 3 x 3 window of near-identical patches becomes one patch. Of the N that are left, the ⌈0.08 N⌉ with
        the most CLS attention are key tokens.
    (b) Prefill: at layers 2, 6, 10 and 14, let A be the attention (mean over heads) that text rows t behind an image
        pay to its tokens j, with g_j = Σ_t A_tj and m_j = max_t A_tj. Token j is dropped if g_j < γ · Σ g and m_j < α,
        unless it is a key token.
    (c) Decoding: the KV caches of layers 2 to 14 keep only the tokens that (b) has left at the end.
"""

import math
from collections.abc import Callable, Sequence
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
from foveate.methods.schedule import Budget, check_count, geometric_counts, half_up
from foveate.methods.settings import Count, Counts, Layers, Positions, Share, numbering
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

DEPTH, LAYERS = 32, (2, 6, 10, 14)  # the released code's decoder, and the layers whose attention filters
REFERENCE = 576  # vision tokens of LLaVA-1.5's images, 24 x 24 patches
SHARE = Attention(rows="after", over="share")
"""g_j / Σ g: the share that each token gets of all the attention that text pays to its image."""
PEAK = Attention(rows="after", over="max")
"""m_j: the most attention that a single text token pays to each token."""


class MustDrop(Method):
    """Drops over a token's whole life: window merging, a dual attention filter, and a final set for decoding.

    A cut drops a vision token if the whole text pays it little attention (a share below `global_thr`), and each single
    text token does too (below `individual_thr`). The key tokens, to which the tower's CLS pays most attention, are
    always kept.

    Attributes:
        global_thr: γ, a share of the attention that all vision tokens get.
        individual_thr: α, an attention probability.
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. The default is
            the released code's; with a budget it is scaled to the decoder's depth.
        merge_windows: Merge windows of nearly identical patches after the tower's first layer.
        merge_threshold: Mean cosine similarity from which a window is merged.
        merge_window: Side of a window, in patches.
        key_rate: Share of the tokens that are key tokens.
        filter: Drop tokens in the prefill.
        kv: Before decoding, cut the caches of the filtering layers to the final tokens.
        mode: "threshold" drops by γ and α, so counts depend on the picture and the question; "budget" keeps the key
            tokens and the highest scores (the larger of the share and the attention over α/γ), up to exact `counts`.
        counts: Budget mode: tokens that each cut keeps, for an image of `reference` tokens; scaled for other images.
        reference: Vision tokens of the image that `counts` is for.
        retention: Instead of `counts`: the mean share of an image's tokens that a layer processes. The counts then fall
            geometrically from the tokens that the tower keeps of the image, so that every image meets the budget.
        tokens: The same as a number of tokens.
        depth: Number of decoder layers for the mean of `retention`; 0: the model's.
        positions: "reindex" renumbers the rows after each cut (the released code), "keep" keeps position ids, and a
            merged token has its window's centre. Families with M-RoPE always keep.

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

    def check_settings(self) -> None:
        budget = self._has_budget
        if self.pruning_layers is None and not budget:
            self._set(pruning_layers=LAYERS)
        if self.pruning_layers == ():
            raise SettingError("pruning_layers must name at least one decoder layer, from 0 on; got ().")
        if budget and self.counts:
            raise SettingError(
                f"Give either counts or a budget (retention=, tokens=), not both; got counts={self.counts}."
            )
        if self.retention and self.tokens:
            raise SettingError(
                f"Give one of tokens= and retention=; got tokens={self.tokens}, retention={self.retention}."
            )
        needed = 0
        if not budget:
            needed = len(self.pruning_layers or ())
        if self.mode == "budget" and len(self.counts) != needed:
            raise SettingError(
                f"mode='budget' needs one count for each of the {needed} pruning layers, or a retention; "
                f"got counts {self.counts} and retention {self.retention}."
            )
        if self.mode == "threshold" and (self.counts or budget):
            raise SettingError(
                f"counts and retention need mode='budget'; got counts={self.counts}, retention={self.retention} with "
                "mode='threshold'."
            )
        if self.mode == "budget" and self.global_thr == 0:
            raise SettingError(
                "mode='budget' divides individual_thr by global_thr, so global_thr must be above 0; got 0."
            )

    @property
    def _has_budget(self) -> bool:
        """Whether the counts are solved for a mean, given by `retention` or `tokens`."""
        return bool(self.retention or self.tokens)

    @property
    def _has_image_stage(self) -> bool:
        """Whether a stage behind the tower marks key tokens and sorts merged rows."""
        return self.merge_windows or (self.filter and self.key_rate > 0)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        if self.merge_windows:
            # Behind the tower's first layer, so before its block 1.
            stages.append(TowerStage(1, choose=self._merge, positions=numbering(self.positions)))
        if self._has_image_stage:
            stages.append(self._image_stage(shape))
        if not self.filter:
            return tuple(stages)
        layers = self._layers(shape.depth)
        for index, layer in enumerate(layers):
            stages.append(self._layer_stage(shape.depth, index, layer))
        if self.kv:
            stages.append(CacheStage(first_layer=layers[0]))
        return tuple(stages)

    def _layers(self, depth: int) -> tuple[int, ...]:
        """Decoder layers whose attention filters."""
        if self.pruning_layers is None:
            return scaled_layers(depth)
        return self.pruning_layers

    # -- (a) the tower -----------------------------------------------------------------------------------------

    def _merge(self, view: PatchView, _: int | None) -> Cut | None:
        """Each window of patches that are alike becomes one patch."""
        if min(view.grid) < self.merge_window:
            return None
        # Mean cosine over the pairs of a 3 x 3 window: Σ_{p≠q} cos(F_p, F_q) / 72, (windows,).
        similarity = window_similarity(view.patches, *view.grid, self.merge_window)
        merged = (similarity >= self.merge_threshold).sum()
        # N = P − (w² − 1) · merged: 17 windows of 9 patches leave 576 − 8 · 17 = 440.
        left = len(view) - merged * (self.merge_window**2 - 1)

        merge = partial(self._windows, view.grid)
        return Cut.fewer(len(view), left, merge, view.patches, similarity, merged)

    def _windows(self, grid: Grid, patches: Tensor, similarity: Tensor, merged: Tensor) -> Cut:
        """The `merged` most similar windows become one patch each: the mean of theirs."""
        windows = merge_windows(similarity, merged, *grid, self.merge_window)
        return windows.with_rows(average(patches, windows))

    def _image_stage(self, shape: Shape) -> Stage:
        """Behind the tower: marks the key tokens, and drops nothing."""
        # Features come from layer 22 of CLIP's 24, and the released code reads the layer after it, 23: layer=1.
        paid = TowerAttention(by="cls" if shape.cls else "patches", layer=1)
        ascending = self.positions == "keep" or not shape.renumbers
        mark = partial(self._mark, ascending)
        return ImageStage(reads=(paid,), choose=mark, count=all_stay, positions=numbering(self.positions))

    def _mark(self, ascending: bool, view: ImageView, _: int | None) -> Cut:
        """Mark the key tokens. Where position ids are kept, sort the rows by them: merging puts merged rows first."""
        none = torch.zeros(len(view), dtype=torch.bool, device=view.features.device)
        keys = top(view.attention, math.ceil(self.key_rate * len(view)))
        is_key = none.scatter(0, keys, True)
        if not (view.merged and ascending):
            return Cut.stay(len(view), {"key": is_key})
        order = view.tokens.argsort()
        return Cut.take(order, len(view), {"key": is_key[order]})

    # -- (b) prefill -------------------------------------------------------------------------------------------

    def _layer_stage(self, depth: int, index: int, layer: int) -> Stage:
        """The cut of this index. It reads the attention of `layer`, which has run, so it is before the next."""
        choose: Callable[[LayerView, int | None], Cut | None] = self._filter
        if self.mode == "budget":
            choose = partial(self._highest, depth, index)
        return LayerStage(
            layer + 1, reads=(SHARE, PEAK), choose=choose, unit="image", positions=numbering(self.positions)
        )

    def _filter(self, view: LayerView, _: int | None) -> Cut | None:
        """Threshold mode: drop j if g_j / Σ g < γ and m_j < α; without text behind the image all tokens stay."""
        if not view.text_behind:
            return None
        # A window may hide an image from all text: then shares are 0 / 0 = nan, and nan is below no threshold.
        ignored = (view[SHARE] < self.global_thr) & (view[PEAK] < self.individual_thr)
        stays = ~ignored
        if "key" in view.notes:
            stays = stays | view.notes["key"]
        return Cut.keep(stays)

    def _highest(self, depth: int, index: int, view: LayerView, _: int | None) -> Cut | None:
        """Budget mode: keep the key tokens and the highest s_j = max(g_j / Σ g, m_j · γ / α), up to an exact count.

        The thresholds keep those of s_j >= γ, so both modes rank alike.
        """
        count = min(len(view), self._counts(depth, view.arriving)[index])
        if not view.text_behind or count == len(view):
            return None
        scores = view[SHARE]
        if self.individual_thr:
            scores = torch.maximum(scores, view[PEAK] * (self.global_thr / self.individual_thr))
        if "key" in view.notes:
            scores = scores.masked_fill(view.notes["key"], float("inf"))
        return Cut.take(top(scores, count), len(view))

    def _counts(self, depth: int, arriving: Arriving) -> tuple[int, ...]:
        """Budget mode: tokens left at each cut, never fewer than the key tokens."""
        keys = 0
        if self._has_image_stage:
            keys = math.ceil(self.key_rate * arriving.started)
        if not self._has_budget:
            counts = [half_up(count * arriving.entered / self.reference) for count in self.counts]
            return tuple(max(1, keys, count) for count in counts)
        mean = self.retention * arriving.entered
        if self.tokens:
            mean = min(self.tokens, arriving.entered)
        cuts = [layer + 1 for layer in self._layers(depth)]
        return geometric_counts(mean, arriving.started, self.depth or depth, cuts, keys)

    # -- with a budget -----------------------------------------------------------------------------------------

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        Budget(tokens, retention)
        count = 0
        if tokens is not None:
            count = max(1, round(tokens))
        layers = self.pruning_layers
        if layers == LAYERS:  # the default, which a budget scales to the model's depth
            layers = None
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

        N is what each image's own merging leaves of it, so that all images meet the budget (one that has less after
        merging keeps all of that), unless `entering` gives N. The key rate is lowered where the key tokens alone exceed
        the budget.
        """
        layers = values.pop("pruning_layers", None) or scaled_layers(depth)
        if entering is not None:
            check_count("entering", entering)
        full = entered or REFERENCE
        mean, start = share * full, entering or full
        first = layers[0] + 1
        # Layers before the first cut process all tokens, the others at least one.
        floor = (first * start + (depth - first)) / depth
        if mean < floor:
            raise BudgetError(
                f"MustDrop cannot average {mean:.4g} of {full} vision tokens on {depth} layers: its first cut is "
                f"before layer {first}, so its floor is {floor:.1f} tokens. Give a larger budget, or earlier "
                "pruning_layers.",
                floor=floor / full,
            )
        # With only key tokens behind it, they may be so many: (first · N + (depth − first) · keys) / depth <= mean.
        most_keys = (depth * mean - first * start) / (depth - first)
        key_rate = min(key_rate, math.floor(most_keys) / start)
        values = {"mode": "budget", "pruning_layers": layers, "key_rate": key_rate, "depth": depth, **values}
        if entering is None and values.get("merge_windows", True):
            return cls(retention=share, **values)
        cuts = [layer + 1 for layer in layers]
        keys = math.ceil(key_rate * start)
        counts = geometric_counts(mean, start, depth, cuts, keys)
        return cls(counts=counts, reference=full, **values)


def all_stay(arriving: Arriving) -> int:
    """The count of a stage that drops nothing."""
    return arriving.tokens


def scaled_layers(depth: int) -> tuple[int, ...]:
    """The released code's layers in a decoder of another depth: 28 gives 2, 5, 9, 12.

    In a shallow decoder some coincide and count once: 4 gives 0, 1, 2.
    """
    return tuple(dict.fromkeys(round(layer * depth / DEPTH) for layer in LAYERS))


def counter(per_layer: Sequence[float]) -> float:
    """The released code's mean, which counts each layer with the tokens left behind it, as published budgets do.

    `per_layer` are the vision tokens that each decoder layer really processes; their plain mean is the true figure.
    200 tokens in layers 0 to 2 and 100 in 3 to 31 are 106.25 by the released code, and truly 109.375.
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
