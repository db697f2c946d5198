"""SparseVLM: only words related to the image rate its tokens; some of the dropped tokens are merged and recycled.

Paper: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
arXiv:2410.04417.

Raters: with V and T the decoder's inputs of vision and of the text after it, m = mean_v softmax_t(V Tᵀ); the words t
with m_t > mean m are raters. Behind layer l: s_j = mean over raters and heads of A_l[rater, j]; the n_l tokens with the
largest s stay. Of the d others, the p = ⌊0.3 d⌋ + 1 best are put into ⌊p / 10⌋ + 1 clusters by density peaks, and each
cluster's mean is recycled: it is added after the tokens that stay.
"""

from dataclasses import replace
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Arriving, Cuts, LayerView, Shape, Stage, check_depth, half_up, highest
from foveate.contract.settings import Counts, Layers, Positions
from foveate.core.cut import Cut
from foveate.core.merge import average, density_peaks
from foveate.core.signals import Attention, Hidden


class Rated(Cuts):
    """Shared by the SparseVLMs: cuts after given layers, each keeping a fixed number of an image's best rated tokens.

    Attributes:
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the code's
            (2, 6, 15) of 32 layers, scaled to other depths.
        targets: Tokens that each cut leaves.
        reference: Vision tokens of the image that these counts are for. Counts are scaled for images of another size.
        retention: Instead of the targets: the mean share of an image's tokens that a decoder layer processes. The
            counts keep the ratio of the usual targets.
        tokens: Instead of the targets: this mean as a number of tokens.
        positions: See `Positions`.

    Raises:
        SettingError: If the lists differ in length.
    """

    usual_layers = (2, 6, 15)
    layers_setting = "pruning_layers"
    behind = 1
    schedule = ("targets",)
    unit = "image"
    falls = "proportional"
    pick = staticmethod(highest)

    pruning_layers: Layers | None = None
    targets: Counts | None = None
    reference: Annotated[int, Ge(1)] = 576
    positions: Positions = "keep"

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """The usual layers, scaled to the depth: 2, 6, 15 of 32 layers, and 2, 5, 13 of 28."""
        check_depth(depth, least=6)
        first = max(0, min(2, depth // 4 - 1))
        second = max(first + 1, round(6 * depth / 32))
        return first, second, max(second + 1, round(15 * depth / 32))

    def left_by(self, value: int, entered: int, started: int) -> int:
        return value and max(1, half_up(value * entered / self.reference))


class SparseVLM(Rated):
    """Cuts three times by the attention of the words that resemble the image, and recycles merged tokens.

    This is the first version (1.x); `SparseVLMPlus` is the later one. Each image has its own raters.

    Attributes:
        targets: Tokens that each cut keeps before recycling. By default the code's list for 192, whose true mean is
            206.5 with the recycled rows.
        retention, tokens: Instead of the targets: a budget, which includes recycled rows; see `Rated`.
        recycle: Add clusters of dropped tokens. False drops them.
        pruning_layers, reference: See `Rated`.
        positions: As in `Rated`, by default "reindex", as in the code. With "keep" a cluster takes its centre's
            position.
    """

    name = "sparsevlm"
    reads = (Attention(rows="raters", layer="ran", heads="mean", over="mean"),)
    usual_keep = (300, 200, 110)

    recycle: bool = True
    positions: Positions = "reindex"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().steps(shape)
        if not self.recycle:
            return stages
        depth, recycling = shape.depth, []
        for index, stage in enumerate(stages):
            recycling.append(replace(stage, reads=(*self.reads, Hidden()), pick=partial(self._pick, depth, index)))
        return tuple(recycling)

    def _pick(self, depth: int, index: int, view: LayerView, count: int) -> Tensor | Cut:
        kept, pool, clusters = self._parts(depth, index, view.arriving)
        if not clusters or not view.text_behind:
            return highest(view, count)
        order = view.attention.sort(descending=True, stable=True).indices
        stay = order[:kept].sort().values
        recycled = order[kept : kept + pool]
        centres, cluster = density_peaks(view.hidden[recycled], clusters)
        # (arriving,): the row that each token goes into; −1: dropped. Rows: kept tokens, then clusters.
        parent = torch.full_like(order, -1)
        parent = parent.scatter(0, stay, torch.arange(kept, device=order.device))
        parent = parent.scatter(0, recycled, kept + cluster)
        cut = Cut.join(torch.cat((stay, recycled[centres])), parent)
        return cut.with_rows(average(view.hidden, cut))

    # -- how many rows each cut leaves -------------------------------------------------------------------------

    def count(self, depth: int, index: int, arriving: Arriving) -> int:
        """Rows that a cut leaves of an image, including clusters."""
        kept, _, clusters = self._parts(depth, index, arriving)
        return kept + clusters

    def _parts(self, depth: int, index: int, arriving: Arriving) -> tuple[int, int, int]:
        """Return how many tokens stay, how many of the others are recycled, and into how many clusters."""
        arrive, left = arriving.tokens, super().count(depth, index, arriving)
        if left >= arrive:
            return arrive, 0, 0
        if self.budget is not None:
            return self._split(arrive, left)
        return left, *self._recycle(arrive - left)

    def _split(self, arrive: int, rows: int) -> tuple[int, int, int]:
        """`_parts` for a number of rows. Keeping one more token makes as many rows, or one more."""
        kept = rows
        pool, clusters = self._recycle(arrive - kept)
        while kept > 1 and kept + clusters > rows:
            kept -= 1
            pool, clusters = self._recycle(arrive - kept)
        return kept, pool, min(clusters, rows - kept)

    def _recycle(self, dropped: int) -> tuple[int, int]:
        """The number of `dropped` tokens that are recycled, and the number of clusters."""
        if not self.recycle:
            return 0, 0
        pool = int(0.3 * dropped) + 1
        return pool, pool // 10 + 1
