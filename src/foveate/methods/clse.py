"""CLSE: rank by the last token's attention, weighted by how much the fine spatial content changes in the first layer.

Paper: CLSE, ECCV 2026. Built from a description of the released code.

With u(z) the high-pass score of each token of a feature map z, and h_0, h_1 the inputs of layers 0 and 1:

    g = min(1, |u(h_1) − u(h_0)| / (mean u(h_0) + u(h_0) + 1e-6))
    e = sigmoid((g − mean g) / (std g + 1e-6) / 0.1)
    score = e · A_0[last]             before layer 1
    score = A_{l−1}[last]             before each later cut
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from foveate.contract import CacheStage, Cuts, LayerView, Shape, Stage, check_depth, half_up
from foveate.contract.settings import FallingShares, Layers
from foveate.core.grid import Grid, high_pass
from foveate.core.rank import put_marked_first, top
from foveate.core.signals import Attention, Cells, Hidden
from foveate.errors import SettingError, UnsupportedError

TEMPERATURE = 0.1
EPSILON = 1e-6


class CLSE(Cuts):
    """Cuts three times: first by attention times the change of high frequencies, then by attention alone.

    Attributes:
        layers: Decoder layers whose input is cut, ascending. The first must be 1, because it compares the inputs of
            layers 0 and 1. By default (1, 11, 21) of 32 layers, and scaled to other depths: (1, 10, 19) of 28.
        keep: Share of the *original* tokens that each cut leaves. By default the code's 330, 210 and 62 of 576.
        rounding: Round these shares to the "nearest" number of tokens, or "down", as the code for Qwen2-VL does.
        retention, tokens: Instead of `keep`: a budget; see `Cuts`. The counts keep the ratio of the defaults.
        kv: Cut the caches of earlier layers to the tokens that are left at the end, as the code for LLaVA does.
    """

    name = "clse"
    reads = (Attention(rows="last", layer="ran", heads="mean"),)
    usual_layers = (1, 11, 21)
    usual_keep = (330 / 576, 210 / 576, 62 / 576)  # the released setting that the authors call 192
    falls = "proportional"
    first_layer = 1
    unit = "image"

    layers: Layers | None = None
    keep: FallingShares | None = None
    rounding: Literal["nearest", "down"] = "nearest"
    kv: bool = True

    def check_settings(self) -> None:
        super().check_settings()
        if self.layers and self.layers[0] != 1:
            raise SettingError(
                f"The first cut compares what enters layers 0 and 1, so layers must begin with 1; got {self.layers}."
            )

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """The released code's layers: (1, 11, 21) of 32, (1, 10, 19) of 28 and (1, 13, 24) of 36."""
        check_depth(depth)
        second = 1 + round((depth - 1) / 3)
        return 1, second, second + (depth - second) // 2

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().steps(shape)
        if not stages:
            return ()
        first, *later = stages
        reads = (Hidden(back=1), Cells(), *self.reads)
        stages = (replace(first, reads=reads, score=None, pick=_evolving), *later)
        if self.kv:
            return (*stages, CacheStage(first_layer=0))
        return stages

    def left_by(self, value: float, entered: int, started: int) -> int:
        return max(1, (half_up if self.rounding == "nearest" else int)(started * value))


def _evolving(view: LayerView, count: int) -> Tensor:
    grids = view.arriving.grids
    if not grids:
        raise UnsupportedError(
            "CLSE needs the whole grid of each image before layer 1, but tokens were dropped earlier. Remove the "
            "method that drops before it."
        )
    scores = evolution(view.hidden, view.hidden_before, view[Cells()], grids) * view.attention
    return top(scores, count)


def evolution(hidden: Tensor, before: Tensor, cells: Tensor, grids: Sequence[Grid]) -> Tensor:
    """e of each token, (tokens,) float32 in [0, 1]: near 1 where fine content changes more than average.

    Args:
        hidden: (tokens, width), the input of layer 1.
        before: (tokens, width), the input of layer 0.
        cells: (tokens, 3) int64, the grid cell of each token; −1 for newlines.
        grids: Rows and columns of each of the image's grids. Tokens are in raster order, grid after grid.
    """
    count = sum(math.prod(grid) for grid in grids)
    order = put_marked_first(cells[:, 0] >= 0)[:count]  # (count,): indices of the tokens that are not newlines
    now, then = (high_pass(rows[order], grids) for rows in (hidden, before))
    change = ((now - then).abs() / (then.mean() + then + EPSILON)).clamp(max=1)
    spread = change.std() if count > 1 else torch.zeros_like(change).sum()
    gate = torch.sigmoid((change - change.mean()) / (spread + EPSILON) / TEMPERATURE)
    average = torch.full_like(cells[:, 0], 0.5, dtype=torch.float32)  # newlines keep sigmoid(0)
    return average.scatter(0, order, gate)
