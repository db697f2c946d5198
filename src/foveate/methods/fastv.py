"""FastV: after the first layers, drop the vision tokens that get little attention from the prompt's last token.

Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
Vision-Language Models", ECCV 2024, arXiv:2403.06764.

s_j = mean over heads of A[last, j], with A the softmax of layer K − 1; the (1 − R) · N tokens with the largest s stay.
This is the released code's "in-place" variant: tokens are removed, and the others keep their position ids.
"""

import math
from dataclasses import replace
from typing import Literal

import torch

from foveate.contract import Attention, Cut, Hidden, LayerView, Shape, Stage
from foveate.contract.cuts import ManyCuts
from foveate.core.merge import join_to_nearest, one_by_one
from foveate.core.rank import top


class FastV(ManyCuts):
    """Drops once, by the attention that the prompt's last token pays in the layer before the cut.

    Differs from the released code in four points. Only the scoring row of attention is computed, under any attention
    kernel; the code materialises the maps of all layers. Scores are float32, and ties go to the lower index. Batches,
    several images and any prompt format work; the code hard-codes the image's place and size. Several cuts are
    possible.

    Attributes:
        layers: The paper's K, (2,): the first layer that processes fewer tokens. Scores come from layer K − 1, so K is
            1 or more. The code's K = 0 is a random mask (`Random`).
        keep: The paper's 1 − R, (0.5,). R is the share that is *dropped*.
        rounding: Round counts to the "nearest" number (halves to the even one), or "up", as in FlashVID.
        join: Merge each dropped token into the kept token most similar to it, by the cosine of the layer's input.
            Tokens are merged one after another, each time by the mean of both. This is HoliTom's merging inside the
            decoder. For several images it needs the scope "image".
        retention, tokens, min_keep, scope: See `Cuts`.
    """

    name = "fastv"
    first_layer = 1  # it reads the layer before
    usual_layers = (2,)
    usual_keep = (0.5,)
    reads = (Attention(rows="last", layer="ran", heads="mean"),)

    rounding: Literal["nearest", "up"] = "nearest"
    join: bool = False

    def usual_at(self, depth: int) -> tuple[int, ...]:
        return self.usual_layers  # the paper's K is 2 for decoders of 32 and of 40 layers

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().steps(shape)
        if self.join:
            return tuple(replace(stage, reads=(*stage.reads, Hidden()), score=None, pick=_join) for stage in stages)
        return stages

    def share_of(self, tokens: int, share: float) -> int:
        rounded = round if self.rounding == "nearest" else math.ceil
        return min(tokens, max(self.min_keep, rounded(tokens * share)))


def _join(view: LayerView, count: int) -> Cut:
    everything = torch.ones_like(view.attention, dtype=torch.bool)
    cut = join_to_nearest(view.hidden, top(view.attention, count), everything)
    return cut.with_rows(one_by_one(view.hidden, cut))
