"""HiPrune: object tokens by a middle layer of the tower, their neighbours, and registers by a deep layer.

Paper: Liu et al., "HiPrune: Hierarchical Attention for Efficient Token Pruning in Vision-Language Models",
arXiv:2508.00553. With the attention a_j that patch j receives, the mean over heads and over all rows, a CLS among them:

    anchors      round(k · α / 5) patches of the highest a in block 8 (of 24, counted from 0)
    buffers      the patches above, below, left and right of each anchor
    registers    the highest a in the feature layer among the others, until k patches stay

Patches stay in raster order. Middle layers attend to objects, and deep ones gather what concerns the whole picture.

Differences from the released code. A buffer beyond the picture's edge is left out; the code takes the first or last
patch, or one of the row next to it. Where anchors and buffers would be more than k, the buffers of the lowest a are
left out. Crops (LLaVA-NeXT) get their share of k by the tokens that are left of each, and a buffer may be in the next
crop. Scores are float32, ties go to the lower index. In a tower of another depth the object block is at the same share
of it; where only some blocks look at the whole picture (Qwen2.5-VL), it is the nearest of these: block 15 of 32, as the
code names it. HiPrune++, which adds tokens by the question, is left out.
"""

from functools import partial
from typing import ClassVar

import torch

from foveate.contract import (
    Entering,
    ImageStage,
    ImageView,
    Layer,
    Positions,
    Preset,
    Shape,
    Share,
    Stage,
    TowerAttention,
    numbering,
)
from foveate.core.cut import Cut
from foveate.core.grid import crops_of, neighbours_of
from foveate.core.rank import ranks, shared_out, top
from foveate.errors import SettingError

__all__ = ["METHOD", "HiPrune"]

DEPTH = 24  # blocks of the tower that `object_layer` is named for
DEEP = TowerAttention(by="patches")


class HiPrune(Entering):
    """Anchors, their neighbours and registers, once, on the way out of the vision tower.

    Attributes:
        alpha: Share of the kept tokens that anchors and buffers shall be, in [0, 1].
        object_layer: The block that finds anchors, of a tower of 24 blocks, from 0 on.
        retention, tokens: k; see `Entering`. By default a third, 192 of 576.
        positions: "reindex" numbers the rows anew, as the released code does for LLaVA; "keep" keeps position ids.
            Families with M-RoPE always keep.
    """

    name = "hiprune"
    usual: ClassVar[float] = 1 / 3

    alpha: Share = 0.1
    object_layer: Layer = 8
    positions: Positions = "reindex"

    def check_settings(self) -> None:
        super().check_settings()
        if self.object_layer >= DEPTH:
            raise SettingError(f"object_layer is a block of a tower of {DEPTH}, 0 to 23; got {self.object_layer}.")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        middle = TowerAttention(by="patches", block=self.object_layer, of=DEPTH)
        choose = partial(self._choose, middle)
        return (ImageStage(reads=(middle, DEEP), count=self.rows, choose=choose, positions=numbering(self.positions)),)

    def _choose(self, middle: TowerAttention, view: ImageView, count: int | None) -> Cut | None:
        assert count is not None
        tokens, scores = len(view), view[middle]
        if count == tokens:
            return None
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
        rank = torch.where(group < 2, ranks(scores), ranks(view[DEEP]))
        order = -(group * tokens + rank)
        kept = [crop[top(order[crop], rows)] for crop, rows in zip(crops, rows_of, strict=True)]
        return Cut.take(torch.cat(kept).sort().values, tokens)


def _preset(name: str, method: HiPrune, depth: int, vision_tokens: int | None, source: str) -> Preset:
    return Preset(f"hiprune/{name}", method, depth, vision_tokens, f"{source}; rows that enter the decoder")


HiPrune.presets = (
    *(_preset(f"llava-1.5-7b/{count}", HiPrune(tokens=count), 32, 576, "paper") for count in (64, 128, 192)),
    *(
        _preset(f"llava-next-7b/{count}", HiPrune(tokens=count), 32, 2928, "the same rule for each crop")
        for count in (160, 320, 640)
    ),
    *(
        _preset(f"qwen2.5-vl-3b/{percent}%", HiPrune(retention=percent / 100), 36, None, "paper")
        for percent in (11.2, 22.3, 33.4)
    ),
)

METHOD = HiPrune
