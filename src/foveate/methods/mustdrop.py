"""MustDrop: merge in the vision tower, filter by text in the prefill, shrink the KV cache for decoding.

Paper: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
arXiv:2411.10803. Constants that the paper leaves open are those of the released code.

    (a) Tower: each 3 x 3 window of near-identical patches becomes one patch. Of the N that are left, the ⌈0.08 N⌉ with
        the most CLS attention are key tokens.
    (b) Prefill: at layers 2, 6, 10 and 14, let A be the attention (mean over heads) that text rows t after an image
        pay to its tokens j, with g_j = Σ_t A_tj and m_j = max_t A_tj. Token j is dropped if g_j < γ · Σ g and m_j < α,
        unless it is a key token.
    (c) Decoding: the KV caches of layers 2 to 14 keep only the tokens that (b) leaves at the end.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge

from foveate.contract import CacheStage, Cuts, ImageStage, Shape, Stage, TowerStage
from foveate.contract.budget import geometric
from foveate.contract.settings import Layers, Positions, Share
from foveate.core.cut import Cut
from foveate.core.merge import average_windows, window_similarity
from foveate.core.rank import top
from foveate.core.signals import Attention, TowerAttention
from foveate.core.views import Arriving, ImageView, LayerView, PatchView
from foveate.errors import SettingError

USUAL = 0.001  # both thresholds of the released code, at 192 tokens
LEAST = 1e-6  # a γ so small that every token of an image gets a larger share
SHARE = Attention(rows="after", over="share")  # g_j / Σ g
PEAK = Attention(rows="after", over="max")  # m_j


class MustDrop(Cuts):
    """Drops in three phases: merges windows in the tower, filters by attention in the prefill, and shrinks the caches.

    Attributes:
        global_thr: γ, a share of the attention that all vision tokens get; usually 0.001.
        individual_thr: α, an attention probability; usually 0.001.
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the
            released code's (2, 6, 10, 14) of 32 layers, scaled to other depths.
        merge_windows: Merge windows of nearly identical patches after the tower's first layer.
        merge_threshold: Mean cosine similarity from which a window is merged.
        merge_window: Side of a window, in patches.
        key_rate: Share of the tokens that are key tokens.
        filter: Drop tokens in the prefill.
        kv: Before decoding, cut the caches from the first to the last filtering layer to the final tokens.
        retention, tokens: Instead of the thresholds: a budget; see `Cuts`. Key tokens stay first, as far as the budget
            allows, then the highest scores. Counts fall geometrically from the number that the tower keeps.
        positions: See `Positions`. The released code renumbers. A merged token takes its window's centre.
    """

    name = "mustdrop"
    layers_setting = "pruning_layers"
    schedule = ("global_thr", "individual_thr")
    behind = 1
    usual_layers = (2, 6, 10, 14)
    reads = (SHARE, PEAK)
    unit = "image"
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {"individual_thr": (None, USUAL / 5)}
    """Values to search: with the usual γ, the two most distant ratios α/γ of the presets."""

    global_thr: Annotated[float, Ge(0)] | None = None
    individual_thr: Annotated[float, Ge(0)] | None = None
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

    @property
    def thresholds(self) -> tuple[float, float]:
        """γ and α, as given or usual."""
        gamma = USUAL if self.global_thr is None else self.global_thr
        return gamma, USUAL if self.individual_thr is None else self.individual_thr

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """The usual layers, scaled to the depth: 28 layers give 2, 5, 9, 12, and 4 give 0, 1, 2 without duplicates."""
        return tuple(dict.fromkeys(round(layer * depth / 32) for layer in self.usual_layers))

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages: list[Stage] = []
        if self.merge_windows:  # after the tower's first layer, that is before its block 1
            stages.append(TowerStage(1, choose=self._merge, positions=self.positions))
        if self.merge_windows or (self.filter and self.key_rate > 0):
            # Features come from layer 22 of CLIP's 24, and the released code reads the layer after it, 23: layer=1.
            paid = TowerAttention(by=shape.payer, layer=1)
            mark = partial(self._mark, not shape.numbers_anew(self.positions), shape.depth)
            all_stay = attrgetter("tokens")
            stages.append(ImageStage(reads=(paid,), choose=mark, count=all_stay, positions=self.positions))
        if self.filter:
            for index, stage in enumerate(super().steps(shape)):
                if self.budget is None:
                    stages.append(replace(stage, count=None, score=None, choose=self._filter))
                else:
                    count, choose = partial(self._solvable, shape.depth), partial(self._highest, shape.depth, index)
                    stages.append(replace(stage, count=count, score=None, choose=choose))
        if self.filter and self.kv:
            stages.append(CacheStage(first_layer=self.cuts(shape.depth)[0] - 1))
        return tuple(stages)

    def at_scale(self, share: float) -> Self:
        """Multiply both thresholds by one factor. A larger `share`, from 0 (γ = 1) to 1, keeps more tokens.

        Raises:
            SettingError: If the thresholds drop no token.
        """
        gamma, alpha = self.thresholds
        if not self.filter or gamma <= 0:
            raise SettingError("Tuning scales the filter's thresholds, so it needs filter=True and global_thr above 0.")
        scaled = LEAST**share
        thresholds = {"global_thr": scaled, "individual_thr": scaled * alpha / gamma}
        return replace(self, **thresholds, retention=None, tokens=None)

    # -- (a) the tower -----------------------------------------------------------------------------------------

    def _merge(self, view: PatchView, _: int | None) -> Cut | None:
        """Merge each window of similar patches into one patch."""
        if view.grid is None or min(view.grid) < self.merge_window:
            return None
        # (windows,): mean cosine over the pairs of a 3 x 3 window, Σ_{p≠q} cos(F_p, F_q) / 72.
        similarity = window_similarity(view.patches, *view.grid, self.merge_window)
        return average_windows(view.patches, similarity, *view.grid, self.merge_window, self.merge_threshold)

    def _mark(self, ascending: bool, depth: int, view: ImageView, _: int | None) -> Cut:
        """Mark the key tokens. If position ids are kept, also sort the rows by them: merged rows come first."""
        none = torch.zeros(len(view), dtype=torch.bool, device=view.features.device)
        keys = top(view.attention, self._keys(depth, view.arriving.entered, len(view)))
        is_key = none.scatter(0, keys, True)
        if not (view.merged and ascending):
            return Cut.stay(len(view), {"key": is_key})
        order = view.tokens.argsort()
        return Cut.take(order, len(view), {"key": is_key[order]})

    # -- (b) prefill -------------------------------------------------------------------------------------------

    def _filter(self, view: LayerView, _: int | None) -> Cut | None:
        """Without a budget: drop j if g_j / Σ g < γ and m_j < α. Without text after the image all tokens stay."""
        if not view.text_behind:
            return None
        # Sliding-window attention may hide an image from all text. Then shares are 0 / 0 = nan, and nan < γ is False.
        gamma, alpha = self.thresholds
        ignored = (view[SHARE] < gamma) & (view[PEAK] < alpha)
        stays = ~ignored
        if "key" in view.notes:
            stays = stays | view.notes["key"]
        return Cut.keep(stays)

    def _solvable(self, depth: int, arriving: Arriving) -> None:
        """Refuse a budget that cannot be met. None: the count depends on the prompt; without text all stay."""
        self.solution(depth, arriving)

    def _highest(self, depth: int, index: int, view: LayerView, _: int | None) -> Cut | None:
        """With a budget: keep the key tokens and the highest max(g_j / Σ g, m_j), which γ = α are compared with."""
        count = min(len(view), self.count(depth, index, view.arriving))
        if not view.text_behind or count == len(view):
            return None
        scores = torch.maximum(view[SHARE], view[PEAK])
        if "key" in view.notes:
            scores = scores.masked_fill(view.notes["key"], float("inf"))
        return Cut.take(top(scores, count), len(view))

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        """Tokens left at each cut, never fewer than the key tokens."""
        least = max(1, self._keys(depth, entered, started))
        return self.counts(geometric(started, len(self.cuts(depth)), least), depth, entered, started)

    def _keys(self, depth: int, entered: int, started: int) -> int:
        """The number of key tokens among the rows that enter the decoder."""
        keys = math.ceil(self.key_rate * started)
        if self.budget is None:
            return keys
        # Only key tokens may be left after the first cut: (first · N + (depth − first) · keys) / depth <= mean.
        first = self.cuts(depth)[0]
        most = (depth * self.budget.mean(entered) - first * started) / max(1, depth - first)
        return max(0, min(keys, math.floor(most)))
