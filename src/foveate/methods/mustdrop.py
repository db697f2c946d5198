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
from collections.abc import Sequence
from functools import partial
from typing import Annotated, TypeAlias

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import (
    Arriving,
    Attention,
    Budgeted,
    CacheStage,
    ImageStage,
    ImageView,
    Layers,
    LayerStage,
    LayerView,
    PatchView,
    Positions,
    Preset,
    Shape,
    Share,
    Stage,
    TowerAttention,
    TowerStage,
    geometric,
    numbering,
)
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.merge import average, merge_windows, window_similarity
from foveate.core.rank import mean_tokens, top
from foveate.errors import SettingError

__all__ = ["METHOD", "MustDrop", "counter"]

DEPTH, LAYERS = 32, (2, 6, 10, 14)  # the released code's decoder, and the layers whose attention filters
USUAL = 0.001  # both thresholds of the released code, at 192 tokens
REFERENCE = 576  # vision tokens of LLaVA-1.5's images, 24 x 24 patches
SHARE = Attention(rows="after", over="share")
"""g_j / Σ g: the share that each token gets of all the attention that text pays to its image."""
PEAK = Attention(rows="after", over="max")
"""m_j: the most attention that a single text token pays to each token."""


Threshold: TypeAlias = Annotated[float, Ge(0)]


class MustDrop(Budgeted):
    """Drops over a token's whole life: window merging, a dual attention filter, and a final set for decoding.

    A cut drops a vision token if the whole text pays it little attention (a share below `global_thr`), and each single
    text token does too (below `individual_thr`). The key tokens, to which the tower's CLS pays most attention, are
    always kept.

    Attributes:
        global_thr: γ, a share of the attention that all vision tokens get. None: 0.001.
        individual_thr: α, an attention probability. None: 0.001.
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the
            released code's (2, 6, 10, 14) of 32 layers, and alike at other depths.
        merge_windows: Merge windows of nearly identical patches after the tower's first layer.
        merge_threshold: Mean cosine similarity from which a window is merged.
        merge_window: Side of a window, in patches.
        key_rate: Share of the tokens that are key tokens.
        filter: Drop tokens in the prefill.
        kv: Before decoding, cut the caches of the filtering layers to the final tokens.
        retention: Instead of γ: the mean share of an image's tokens that a layer processes. The key tokens
            stay, and the highest scores: the larger of the share and the attention over α / 0.001. The counts fall
            geometrically from the tokens that the tower keeps of the image, so that every image meets the budget.
            Where the key tokens alone exceed it, they are fewer.
        tokens: The same as a number of tokens.
        positions: "reindex" renumbers the rows after each cut (the released code), "keep" keeps position ids, and a
            merged token has its window's centre. Families with M-RoPE always keep.

    Raises:
        SettingError: If settings contradict each other or leave their range.
    """

    name = "mustdrop"
    global_thr: Threshold | None = None
    individual_thr: Threshold | None = None
    pruning_layers: Layers | None = None
    merge_windows: bool = True
    merge_threshold: float = 0.8
    merge_window: Annotated[int, Ge(2)] = 3
    key_rate: Share = 0.08
    filter: bool = True
    kv: bool = True
    positions: Positions = "reindex"

    def check_settings(self) -> None:
        if self.pruning_layers == ():
            raise SettingError("pruning_layers must name at least one decoder layer, from 0 on; got ().")
        if self.budget is not None and self.thresholds[0] == 0:
            raise SettingError(
                "A budget ranks by individual_thr divided by global_thr, so global_thr must be above 0; got 0."
            )

    @property
    def open(self) -> bool:
        """Thresholds that somebody has given stay: presets and tuned records are run with theirs."""
        return super().open and self.global_thr is None and self.individual_thr is None

    @property
    def thresholds(self) -> tuple[float, float]:
        """γ and α."""
        gamma = USUAL if self.global_thr is None else self.global_thr
        return gamma, USUAL if self.individual_thr is None else self.individual_thr

    @property
    def _has_image_stage(self) -> bool:
        """Whether a stage behind the tower marks key tokens and sorts merged rows."""
        return self.merge_windows or (self.filter and self.key_rate > 0)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
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
        mark = partial(self._mark, ascending, shape.depth)
        return ImageStage(reads=(paid,), choose=mark, count=all_stay, positions=numbering(self.positions))

    def _mark(self, ascending: bool, depth: int, view: ImageView, _: int | None) -> Cut:
        """Mark the key tokens. Where position ids are kept, sort the rows by them: merging puts merged rows first."""
        none = torch.zeros(len(view), dtype=torch.bool, device=view.features.device)
        keys = top(view.attention, self._keys(depth, view.arriving.entered, len(view)))
        is_key = none.scatter(0, keys, True)
        if not (view.merged and ascending):
            return Cut.stay(len(view), {"key": is_key})
        order = view.tokens.argsort()
        return Cut.take(order, len(view), {"key": is_key[order]})

    # -- (b) prefill -------------------------------------------------------------------------------------------

    def _layer_stage(self, depth: int, index: int, layer: int) -> Stage:
        """The cut of this index. It reads the attention of `layer`, which has run, so it is before the next."""
        count, choose = None, self._filter
        if self.budget is not None:
            count, choose = partial(self._solvable, depth), partial(self._highest, depth, index)
        return LayerStage(
            layer + 1,
            reads=(SHARE, PEAK),
            count=count,
            choose=choose,
            unit="image",
            positions=numbering(self.positions),
        )

    def _filter(self, view: LayerView, _: int | None) -> Cut | None:
        """Without a budget: drop j if g_j / Σ g < γ and m_j < α; without text behind the image all tokens stay."""
        if not view.text_behind:
            return None
        # A window may hide an image from all text: then shares are 0 / 0 = nan, and nan is below no threshold.
        gamma, alpha = self.thresholds
        ignored = (view[SHARE] < gamma) & (view[PEAK] < alpha)
        stays = ~ignored
        if "key" in view.notes:
            stays = stays | view.notes["key"]
        return Cut.keep(stays)

    def _solvable(self, depth: int, arriving: Arriving) -> None:
        """Refuse a budget that cannot be met. How many stay only the prompt tells: without text behind it, all."""
        self.counts(depth, arriving)

    def _highest(self, depth: int, index: int, view: LayerView, _: int | None) -> Cut | None:
        """With a budget: keep the key tokens and the highest s_j = max(g_j / Σ g, m_j · γ / α), up to an exact count.

        The thresholds keep those of s_j >= γ, so both rank alike.
        """
        count = min(len(view), self.counts(depth, view.arriving)[index])
        if not view.text_behind or count == len(view):
            return None
        scores = view[SHARE]
        gamma, alpha = self.thresholds
        if alpha:
            scores = torch.maximum(scores, view[PEAK] * (gamma / alpha))
        if "key" in view.notes:
            scores = scores.masked_fill(view.notes["key"], float("inf"))
        return Cut.take(top(scores, count), len(view))

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        """Tokens left at each cut, never fewer than the key tokens."""
        cuts = [layer + 1 for layer in self._layers(depth)]
        curve = geometric(started, len(cuts), least=max(1, self._keys(depth, entered, started)))
        return self.rounded(curve, cuts, depth, entered, started)

    def _keys(self, depth: int, entered: int, started: int) -> int:
        """Key tokens among those that enter the decoder."""
        keys = math.ceil(self.key_rate * started) if self._has_image_stage else 0
        if self.budget is None:
            return keys
        # With only key tokens behind the first cut: (first · N + (depth − first) · keys) / depth <= mean.
        first = self._layers(depth)[0] + 1
        most = (depth * self.budget.mean(entered) - first * started) / max(1, depth - first)
        return max(0, min(keys, math.floor(most)))


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
