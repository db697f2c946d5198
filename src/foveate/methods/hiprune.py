"""HiPrune: object tokens by a middle layer of the tower, their neighbours, and registers by a deep layer.

Paper: Liu et al., "HiPrune: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models",
arXiv:2508.00553. With the attention a_j that patch j receives, the mean over heads and over all rows, a CLS among them:

    anchors      round(k · α / 5) patches of the highest a in block 8 (of 24, counted from 0)
    buffers      the patches above, below, left and right of each anchor
    registers    the highest a in the feature layer among the others, until k patches stay

Patches stay in raster order. A buffer beyond the picture's edge is left out; where anchors and buffers would be more
than k, so are the buffers of the lowest a. Crops (LLaVA-NeXT) get their share of k by the tokens that are left of each.
In a tower of another depth the object block is at the same share of it; where only some blocks look at the whole
picture (Qwen2.5-VL), it is the nearest of these. HiPrune++, which adds tokens by the question, is left out.
"""

from typing import Annotated

import torch
from annotated_types import Le
from torch import Tensor

from foveate.contract import ImageStage, ImageView, Layer, Once, Positions, Shape, Share, Signal, Stage, TowerAttention
from foveate.core.grid import crops_of, neighbours_of
from foveate.core.rank import ranks, shared_out, top

DEPTH = 24  # blocks of the tower that `object_layer` is named for


class HiPrune(Once):
    """Anchors, their neighbours and registers, once, on the way out of the vision tower.

    Attributes:
        alpha: Share of the kept tokens that anchors and buffers shall be, in [0, 1].
        object_layer: The block that finds anchors, of a tower of 24 blocks, from 0 on.
        retention, tokens: k; see `Once`. By default a third, 192 of 576.
        positions: See `Positions`; the released code numbers anew for LLaVA.
    """

    name = "hiprune"
    usual = 1 / 3
    halves_up = True

    alpha: Share = 0.1
    object_layer: Annotated[Layer, Le(DEPTH - 1)] = 8
    positions: Positions = "reindex"

    @property
    def reads(self) -> tuple[Signal, ...]:
        return TowerAttention(by="patches", block=self.object_layer, of=DEPTH), TowerAttention(by="patches")

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(reads=self.reads, count=self.rows, pick=self.pick, positions=self.positions),)

    def pick(self, view: ImageView, count: int) -> Tensor:
        middle, deep = self.reads
        tokens, scores = len(view), view[middle]
        crops = [crop.to(scores.device) for crop in crops_of(view.grids, tokens)]
        rows_of = shared_out(count, [len(crop) for crop in crops])
        anchors = []
        for crop, rows in zip(crops, rows_of, strict=True):
            anchors.append(crop[top(scores[crop], min(rows, round(rows * self.alpha / 5)))])
        anchor = torch.cat(anchors)
        neighbours = neighbours_of(view.grids, tokens).to(scores.device)[anchor].flatten()
        # 0 for anchors, 1 for buffers, 2 for the others; beyond the edge stands the ordinal `tokens`.
        none = torch.full((tokens + 1,), 2, device=scores.device)
        group = none.scatter(0, neighbours, 1).scatter(0, anchor, 0)[:tokens]
        rank = torch.where(group < 2, ranks(scores), ranks(view[deep]))
        order = -(group * tokens + rank)
        kept = [crop[top(order[crop], rows)] for crop, rows in zip(crops, rows_of, strict=True)]
        kept_of_all: Tensor = torch.cat(kept).sort().values
        return kept_of_all


METHOD = HiPrune
