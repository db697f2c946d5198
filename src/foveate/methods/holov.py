"""HoloV: keep tokens in every crop of the image, so that the context around attended regions survives.

Paper: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
NeurIPS 2025, arXiv:2510.02912.

With the CLS's attention A, crop c keeps the ⌊w_c k⌋ of k tokens with the highest H, where w_c ∝ mean(H in c)^τ:

    H = A          in the released code, whose crops are runs of the raster. It adds V, but scaled so that it cancels
    H = A + γ V    in the paper, whose crops are windows. V_i is the variance of the cosines of token i with the others
                   in its crop, over the rows that enter the decoder; γ = mean |A| / mean |V| over the image
                   (foveate's choice)
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import ImageStage, ImageView, LayerView, Once, Part, Positions, Shape, Stage
from foveate.core.grid import regions_of
from foveate.core.picks import cosines, quotas
from foveate.core.rank import ranks_in_groups, top
from foveate.core.signals import Hidden, Signal, TowerAttention
from foveate.core.tensors import blocks

SMALLEST = 1e-12  # lower bound of the divisors: the mean variance and the mean score


class HoloV(Once):
    """Gives each crop of an image a quota, and keeps the tokens with the highest score H in each.

    Attributes:
        rule: "released" or "paper": see above.
        crops: C, the largest number of crops in a view or frame. All crops of an image share k.
        tau: τ, how strongly quotas follow the score. 0 gives every crop the same quota.
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
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        return (Hidden(),) if self.rule == "paper" else ()

    def _look(self, view: ImageView) -> Mapping[str, Tensor]:
        """Note the attention and the crop of each token. Crop c is −1 − c, because newlines have the note 1."""
        crop = regions_of(view.grids, len(view), self.crops, windows=self.rule == "paper")
        return {"attention": view.attention, "crop": -1 - crop.to(view.attention.device)}

    def pick(self, view: LayerView, count: int) -> Tensor:
        is_patch = view.notes["crop"] < 0
        # Newlines form an additional last crop of weight 0. Its index is free: with a newline there are fewer crops
        # than tokens.
        crop = torch.where(is_patch, -1 - view.notes["crop"], len(view) - 1)
        scores = view.notes["attention"].masked_fill(~is_patch, 0)
        if self.rule == "paper":
            scores = holistic(scores, view.hidden, crop, is_patch)
        nothing = torch.zeros_like(scores)
        room = nothing.scatter_add(0, crop, torch.ones_like(scores))  # (tokens,): tokens of each crop, by its index
        patches = nothing.scatter_add(0, crop, is_patch.float())
        mean = nothing.scatter_add(0, crop, scores) / room.clamp(min=1)
        # Only proportions count; without scaling, a power of small means would underflow to 0.
        mean = mean / mean.amax().clamp(min=SMALLEST)
        weights = torch.where(patches > 0, mean**self.tau, 0)
        quota = quotas(weights, room.long(), count)
        stays = ranks_in_groups(scores, crop) < quota[crop]
        return top(stays.float(), count)


def holistic(attention: Tensor, rows: Tensor, crop: Tensor, is_patch: Tensor) -> Tensor:
    """H of each token: (tokens,) float32; 0 for a newline.

    Shapes: attention (tokens,) float32, rows (tokens, width), crop (tokens,) int64, is_patch (tokens,) bool.
    """
    places = torch.arange(len(crop), device=crop.device)
    parts = []
    for part in blocks(places, len(crop)):
        # (block, tokens): 1 where a patch is in the same crop as the block's token, and is another token.
        together = ((crop[part, None] == crop) & is_patch & (part[:, None] != places)).float()
        others = together.sum(dim=1).clamp(min=1)
        similarity = cosines(rows[part], others=rows)
        mean = (similarity * together).sum(dim=1) / others
        parts.append(((similarity - mean[:, None]).square() * together).sum(dim=1) / others)
    variance = torch.cat(parts)
    gamma = attention.abs().sum() / variance.sum().clamp(min=SMALLEST * len(crop))
    return attention + gamma * variance
