"""HoloV: every crop of the image keeps tokens, so that the context around what is looked at survives.

Paper: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
NeurIPS 2025, arXiv:2510.02912.

With the CLS's attention A crop c keeps ⌊w_c k⌋ of k tokens, those of the highest H, w_c ∝ mean(H in c)^τ:

    H = A          by the released code, whose crops are runs of the raster. It adds V, but scaled so that it cancels
    H = A + γ V    by the paper, whose crops are windows. V_i is the variance of the cosines of token i to the others of
                   its crop, of the rows that enter the decoder; γ = mean |A| / mean |V| over the image (ours)
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Arriving, ImageStage, ImageView, LayerView, Once, Part, Positions, Shape, Stage
from foveate.core.grid import regions_of
from foveate.core.picks import cosine_flops, cosines, quotas
from foveate.core.rank import ranks_in_groups, top
from foveate.core.signals import Hidden, Signal, TowerAttention
from foveate.core.tensors import blocks

SMALLEST = 1e-12  # the smallest mean variance, or mean score, that divides


class HoloV(Once):
    """A quota for each crop, and in each crop the tokens with the highest score H.

    Attributes:
        rule: "released" or "paper": see above.
        crops: C, at most as many crops in a view or frame; all of an image share k.
        tau: τ, how sharply quotas follow the score; 0 gives every crop the same.
        keep, tokens, retention, positions: See `Once`.
    """

    name = "holov"

    keep: Part | None = None
    positions: Positions = "reindex"
    rule: Literal["released", "paper"] = "released"
    crops: Annotated[int, Ge(1)] = 16
    tau: Annotated[float, Ge(0)] = 1.0

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(reads=(TowerAttention(by=shape.payer),), look=self._look), *super().steps(shape))

    @property
    def reads(self) -> tuple[Signal, ...]:
        return (Hidden(),) if self.rule == "paper" else ()

    def flops(self, arriving: Arriving, width: int) -> int:
        return cosine_flops(arriving, width) if self.rule == "paper" else 0

    def _look(self, view: ImageView) -> Mapping[str, Tensor]:
        """Attention and crop of each token. Crop c is −1 − c, as notes of newlines are 1."""
        crop = regions_of(view.grids, len(view), self.crops, windows=self.rule == "paper")
        return {"attention": view.attention, "crop": -1 - crop.to(view.attention.device)}

    def pick(self, view: LayerView, count: int) -> Tensor:
        is_patch = view.notes["crop"] < 0
        # There are fewer crops than tokens if one of these is a newline; newlines are a last crop of no weight.
        crop = torch.where(is_patch, -1 - view.notes["crop"], len(view) - 1)
        scores = view.notes["attention"].masked_fill(~is_patch, 0)
        if self.rule == "paper":
            scores = holistic(scores, view.hidden, crop, is_patch)
        nothing = torch.zeros_like(scores)
        room = nothing.scatter_add(0, crop, torch.ones_like(scores))
        patches = nothing.scatter_add(0, crop, is_patch.float())
        mean = nothing.scatter_add(0, crop, scores) / room.clamp(min=1)
        mean = mean / mean.amax().clamp(min=SMALLEST)  # only proportions count, and a power of small numbers would be 0
        weights = torch.where(patches > 0, mean**self.tau, 0)
        quota = quotas(weights, room.long(), count)
        stays = ranks_in_groups(scores, crop) < quota[crop]
        return top(stays.float(), count)


def holistic(attention: Tensor, rows: Tensor, crop: Tensor, is_patch: Tensor) -> Tensor:
    """H of each token: (tokens,) float32; 0 for a newline.

    Shapes: (tokens,) float32, (tokens, width), (tokens,) int64 and (tokens,) bool.
    """
    places = torch.arange(len(crop), device=crop.device)
    parts = []
    for part in blocks(places, len(crop)):
        together = ((crop[part, None] == crop) & is_patch & (part[:, None] != places)).float()
        others = together.sum(dim=1).clamp(min=1)
        similarity = cosines(rows[part], others=rows)
        mean = (similarity * together).sum(dim=1) / others
        parts.append(((similarity - mean[:, None]).square() * together).sum(dim=1) / others)
    variance = torch.cat(parts)
    gamma = attention.abs().sum() / variance.sum().clamp(min=SMALLEST * len(crop))
    return attention + gamma * variance


METHOD = HoloV
