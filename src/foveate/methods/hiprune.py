"""HiPrune: keep object tokens found in a middle layer of the tower, their neighbours, and registers of a deep layer.

Paper: Liu et al., "HiPrune: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models",
arXiv:2508.00553. With a_j the attention that patch j receives, mean over heads and over all rows, a CLS included:

    anchors      the round(k · α / 5) patches with the highest a in block 8 (of 24, counted from 0)
    buffers      the patches above, below, left and right of each anchor
    registers    the highest a in the feature layer among the others, until k patches stay

Patches stay in raster order. Buffers beyond the image's edge do not exist. If anchors and buffers are more than k, the
buffers with the lowest a are dropped. Each crop (LLaVA-NeXT) gets its share of k by the tokens left of it. In a tower
of another depth, the object block is at the same relative depth. If only some blocks attend to the whole image
(Qwen2.5-VL), it is the nearest of these. HiPrune++, which adds tokens by the question, is not implemented.
"""

from typing import Annotated

import torch
from annotated_types import Le
from torch import Tensor

from foveate.contract import ImageStage, ImageView, Layer, Once, Positions, Shape, Share, Signal, Stage, TowerAttention
from foveate.core.grid import crops_of, neighbours_of
from foveate.core.rank import ranks, share_out, top

DEPTH = 24  # blocks of the tower that `object_layer` is named for


class HiPrune(Once):
    """Keeps the patches most attended in a middle layer of the tower, their neighbours, and some of a deep layer.

    Attributes:
        alpha: Share of the kept tokens that are anchors and buffers, in [0, 1].
        object_layer: The block that finds anchors, from 0 on, in a tower of 24 blocks.
        retention, tokens: k; see `Once`. By default a third, 192 of 576.
        positions: See `Positions`. The released code renumbers for LLaVA.
    """

    name = "hiprune"
    usual = 1 / 3
    halves_up = True

    alpha: Share = 0.1
    object_layer: Annotated[Layer, Le(DEPTH - 1)] = 8
    positions: Positions = "reindex"

    @property
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        return TowerAttention(by="patches", block=self.object_layer, of=DEPTH), TowerAttention(by="patches")

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(reads=self.reads, count=self.rows, pick=self.pick, positions=self.positions),)

    def pick(self, view: ImageView, count: int) -> Tensor:
        middle, deep = self.reads
        tokens, scores = len(view), view[middle]
        crops = [crop.to(scores.device) for crop in crops_of(view.grids, tokens)]
        rows_of = share_out(count, [len(crop) for crop in crops])
        anchors = []
        for crop, rows in zip(crops, rows_of, strict=True):
            anchors.append(crop[top(scores[crop], min(rows, round(rows * self.alpha / 5)))])
        anchor = torch.cat(anchors)
        neighbours = neighbours_of(view.grids, tokens).to(scores.device)[anchor].flatten()
        # group: 0 for anchors, 1 for buffers, 2 for the others. A neighbour beyond the edge has the index `tokens`.
        none = torch.full((tokens + 1,), 2, device=scores.device)
        group = none.scatter(0, neighbours, 1).scatter(0, anchor, 0)[:tokens]
        rank = torch.where(group < 2, ranks(scores), ranks(view[deep]))
        order = -(group * tokens + rank)  # (tokens,): by group, then by rank; the highest stay
        kept = [crop[top(order[crop], rows)] for crop, rows in zip(crops, rows_of, strict=True)]
        kept_of_all: Tensor = torch.cat(kept).sort().values
        return kept_of_all
