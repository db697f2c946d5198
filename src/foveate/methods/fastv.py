"""FastV: drop the vision tokens that the prompt's last token hardly attends to, once, behind the first layers.

Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2: Plug-and-Play Inference Acceleration for Large
Vision-Language Models", ECCV 2024, arXiv:2403.06764.

s_j = mean over heads of A[last, j], with A the softmax of layer K − 1; the (1 − R) · N tokens with the largest s stay.
This is the released code's "in-place" variant: tokens really leave, and the others keep their position ids.
"""

import math
from dataclasses import replace
from typing import Literal

import torch

from foveate.contract import Attention, Count, Cut, Cuts, Hidden, Layers, LayerView, Shape, Shares, Stage, Unit
from foveate.core.merge import joined_to_nearest, one_by_one
from foveate.core.rank import top


class FastV(Cuts):
    """One cut, by the attention that the prompt's last token pays in the layer before it.

    Different from the released code: only the row of attention that scores is computed, under any kernel, where the
    code asks for all maps of all layers; scores are float32, and ties go to the lower index; batches, several images
    and prompts of any form, where the code has the image's place and size written in. Several cuts are possible.

    Attributes:
        layers: The paper's K, (2,): the first layer that processes fewer tokens. It reads layer K − 1, so K is 1 or
            more; the code's K = 0 is a random mask (`Random`).
        keep: The paper's 1 − R, (0.5,). R is the share that is *dropped*.
        rounding: Of counts: to the "nearest", halves to the even number, or "up", as in FlashVID.
        join: What leaves joins the token that is most like it among those that stay, by the cosine of what enters the
            layer; one after the other, each time the mean of both is taken. So HoliTom merges inside the decoder.
            Several images need the scope "image".
        retention, tokens, min_keep, scope: See `Cuts`.
    """

    name = "fastv"
    first_layer = 1  # it reads the layer before
    usual_layers = (2,)
    usual_keep = (0.5,)
    reads = (Attention(rows="last", layer="ran", heads="mean"),)

    layers: Layers | None = None
    keep: Shares | None = None
    min_keep: Count = 1
    scope: Unit = "sample"
    rounding: Literal["nearest", "up"] = "nearest"
    join: bool = False

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
    cut = joined_to_nearest(view.hidden, top(view.attention, count), everything)
    return cut.with_rows(one_by_one(view.hidden, cut))


METHOD = FastV
