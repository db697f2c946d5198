"""HoloV: every crop of the image keeps tokens, so that the context around what is looked at survives.

Paper: Zou et al., "Don't Just Chase 'Highlighted Tokens' in MLLMs: Revisiting Visual Holistic Context Retention",
NeurIPS 2025, arXiv:2510.02912.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import coarser, into_cells
from foveate.core.picks import cosines, quotas
from foveate.core.rank import ranks_in_groups, top
from foveate.methods.counted import Counted, entering
from foveate.methods.settings import numbering
from foveate.methods.stages import (
    Arriving,
    Hidden,
    ImageStage,
    ImageView,
    LayerStage,
    LayerView,
    Shape,
    Stage,
    TowerAttention,
)

__all__ = ["METHOD", "HoloV"]

SMALLEST = 1e-12  # the smallest mean variance, or mean score, that divides


class HoloV(Counted):
    """A quota for each crop, and in each crop the tokens with the highest holistic score.

    A is the CLS's attention, and V_i the variance of the cosines of token i to the other tokens of its crop, of the
    rows that enter the decoder. Over the whole image

        H = A + γ V,  γ = mean |A| / mean |V|        w_c ∝ mean(H in c)^τ

    Of k tokens crop c keeps ⌊w_c k⌋; what is left goes to the heaviest crops, one token each, and what a crop has no
    room for to the others in proportion to w_c times their room (`foveate.core.picks.quotas`).

    This is the paper's method. Crops are near-square windows, 4 x 4 of them on LLaVA-1.5's grid. Each view, tile map or
    frame has crops of its own, and all of an image share k. γ is one number for an image (ours: our source leaves that
    open, and with a γ for each crop V would cancel out of w_c). A newline stays only once every other token does.

    The released code differs: crops are runs of the raster, on Qwen-VL int(1024 / 576 · N / k) of them for N tokens; γ
    is a constant; V counts for the quotas alone; overflow is lost; and survivors are not in raster order. Its constant
    fits attention averaged over heads, and a stage sees their sum, so it is no setting.

    Attributes:
        crops: C, at most as many crops in a view or frame.
        tau: τ, how sharply quotas follow the score; 0 gives every crop the same.
        keep, tokens, retention, positions: See `Counted`.
    """

    name = "holov"

    crops: Annotated[int, Ge(1)] = 16
    tau: Annotated[float, Ge(0)] = 1.0

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        paid = TowerAttention(by="cls" if shape.cls else "patches")
        look = ImageStage(reads=(paid,), look=self._look)
        pick = LayerStage(
            0,
            reads=(Hidden(),),
            count=self.left,
            choose=self._choose,
            unit="image",
            positions=numbering(self.positions),
            flops=_flops,
        )
        return (look, pick)

    def _look(self, view: ImageView) -> Mapping[str, Tensor]:
        """Attention and crop of each token. Crop c is −1 − c, as notes of newlines are 1."""
        crop = _crops(view, self.crops).to(view.attention.device)
        return {"attention": view.attention, "crop": -1 - crop}

    def _choose(self, view: LayerView, count: int | None) -> Cut | None:
        assert count is not None
        tokens = len(view)
        if count == tokens:
            return None
        is_patch = view.notes["crop"] < 0
        # There are fewer crops than tokens if one of these is a newline; newlines are a last crop of no weight.
        crop = torch.where(is_patch, -1 - view.notes["crop"], tokens - 1)
        attention = view.notes["attention"].masked_fill(~is_patch, 0)
        scores = holistic(attention, view.hidden, crop, is_patch)
        nothing = torch.zeros_like(scores)
        room = nothing.scatter_add(0, crop, torch.ones_like(scores))
        patches = nothing.scatter_add(0, crop, is_patch.float())
        mean = nothing.scatter_add(0, crop, scores) / room.clamp(min=1)
        mean = mean / mean.amax().clamp(min=SMALLEST)  # only proportions count, and a power of small numbers would be 0
        weights = torch.where(patches > 0, mean**self.tau, 0)
        quota = quotas(weights, room.long(), count)
        stays = ranks_in_groups(scores, crop) < quota[crop]
        return Cut.take(top(stays.float(), count), tokens)


def holistic(attention: Tensor, rows: Tensor, crop: Tensor, is_patch: Tensor) -> Tensor:
    """H of each token: (tokens,) float32; 0 for a newline.

    Shapes: (tokens,) float32, (tokens, width), (tokens,) int64 and (tokens,) bool.
    """
    itself = torch.eye(len(crop), dtype=torch.bool, device=crop.device)
    together = ((crop[:, None] == crop) & is_patch & ~itself).float()
    others = together.sum(dim=1).clamp(min=1)
    similarity = cosines(rows)
    mean = (similarity * together).sum(dim=1) / others
    variance = ((similarity - mean[:, None]).square() * together).sum(dim=1) / others
    gamma = attention.abs().sum() / variance.sum().clamp(min=SMALLEST * len(crop))
    return attention + gamma * variance


def _crops(view: ImageView, most: int) -> Tensor:
    """The crop of each token, (tokens,) int64: windows of each grid, or runs of tokens that are on no known grid."""
    if not view.grids:
        return torch.arange(len(view)) * min(most, len(view)) // len(view)
    crops = []
    first = 0
    for grid in view.grids:
        windows = into_cells(grid, coarser(grid, most))
        crops.append(windows.parent + first)
        first += len(windows.source)
    return torch.cat(crops)


def _flops(arriving: Arriving, width: int) -> int:
    return 2 * arriving.tokens**2 * width  # the cosines


HoloV.presets = tuple(
    entering(HoloV, "llava-1.5-7b", tokens, 576, "paper, 16 crops and tau 1") for tokens in (192, 128, 64)
)

METHOD = HoloV
