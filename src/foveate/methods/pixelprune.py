"""PixelPrune: before the vision tower, tokens leave whose pixels are what their neighbours predict.

Paper: PixelPrune, 2026. As in lossless image coding a block that can be predicted is not sent: of screenshots 15 to
68 % of the tokens are background, and are never computed. What was compressed or resized needs a tau of 0.02 to 0.05.

A unit is the pixels of one token. The first stays. Units of the first row are predicted to be as the one on their left
(A), units of the first column as the one above (B). For others the corner between the two (C) decides: B if C is like A
and not like B, else A. A unit that is like its prediction leaves, and the prediction stands in its place for the units
behind it, so that errors do not add up. Alike is what differs by tau at most.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.contract import Arriving, Cut, Method, PatchStage, PixelView, Shape, Share, Stage


class PixelPrune(Method):
    """Drops what neighbours predict, before the vision tower: for screens and pages.

    Attributes:
        tau: How far units may differ that count as alike, in pixels from 0 to 1. 0: not at all, and no pixel is lost.
        metric: The difference of two units: the largest of all their numbers, or the mean or the root mean square.
    """

    name = "pixelprune"

    tau: Share = 0.0
    metric: Literal["max", "mae", "rmse"] = "max"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (PatchStage(choose=self._choose, flops=comparisons),)

    def _choose(self, view: PixelView, count: int | None) -> Cut:
        if self.tau == 0:
            return Cut.keep(unequal(view.units).flatten())
        return Cut.keep(unlike(view.levels(), self._alike).flatten())

    def _alike(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether units are alike, of two times (…, numbers) levels from 0 to 255."""
        differences = (first - second).abs()
        if self.metric == "max":
            # Levels are whole numbers; 255 · tau may miss one by a hair.
            return differences.amax(dim=-1) <= round(255 * self.tau)
        if self.metric == "mae":
            return differences.mean(dim=-1) <= 255 * self.tau
        return differences.square().mean(dim=-1).sqrt() <= 255 * self.tau


def unequal(units: Tensor) -> Tensor:
    """Which units stay where alike is equal: (frames, rows, columns, numbers) to (frames, rows, columns) bool.

    What stands in a unit's place is then equal to it, so the picture itself tells: two grids of comparisons serve all.
    """
    # Whether each unit is equal to the one on its left, and to the one above; the first of all has neither.
    is_left = pad((units[:, :, 1:] == units[:, :, :-1]).all(dim=-1), (1, 0))
    is_above = pad((units[:, 1:] == units[:, :-1]).all(dim=-1), (0, 0, 1, 0))
    # C is A's unit above, and B's on the left. Beyond the edges they are such that column 0 asks B, and row 0 asks A.
    corner_is_left = pad(is_above[:, :, :-1], (1, 0), value=True)
    corner_is_above = pad(is_left[:, :-1], (0, 0, 1, 0))
    predicted_above = corner_is_left & ~corner_is_above
    return ~torch.where(predicted_above, is_above, is_left)


def unlike(units: Tensor, alike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Which units stay where being alike is not being equal: shapes as for `unequal`.

    What stands in each unit's place is known by its index. A unit needs that of A, B and C, so a diagonal (row + column
    are the same) is worked out at once, from the one before and the one before that.
    """
    frames, rows, columns, _ = units.shape
    numbers = units.flatten(0, 2)
    index = torch.arange(len(numbers), device=units.device).view(frames, rows, columns)
    stands = pad(index, (1, 0, 1, 0))  # with a row above and a column on the left
    frame = torch.arange(frames, device=units.device)[:, None]

    def are_alike(first: Tensor, second: Tensor) -> Tensor:
        return alike(numbers[first], numbers[second])

    for diagonal in range(rows + columns - 1):
        row = torch.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1), device=units.device)
        column = diagonal - row
        unit, left, above = index[:, row, column], stands[:, row + 1, column], stands[:, row, column + 1]
        corner = stands[:, row, column]
        by_corner = are_alike(corner, left) & ~are_alike(corner, above)
        predicted = torch.where((column == 0) | (by_corner & (row > 0)), above, left)
        leaves = are_alike(unit, predicted) & (row + column > 0)
        stands = stands.index_put((frame, row + 1, column + 1), torch.where(leaves, predicted, unit))
    return stands[:, 1:, 1:] == index


def comparisons(arriving: Arriving, width: int) -> int:
    """Each unit with two others, of 4 patches of 2 · 3 · 14 · 14 numbers (Qwen2-VL; Qwen3-VL's have 16 · 16)."""
    return 2 * arriving.tokens * 4 * 2 * 3 * 14**2


METHOD = PixelPrune
