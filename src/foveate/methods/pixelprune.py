"""PixelPrune: before the vision tower, drop tokens whose pixels are predicted by their neighbours.

Paper: PixelPrune, 2026. As in lossless image coding, a block that can be predicted is not sent. On screenshots 15 to
68 % of the tokens are background, and are never computed. Compressed or resized images need a tau of 0.02 to 0.05.

A unit is the pixels of one token. The first unit stays. The prediction of a unit is

    first row       the unit on its left (A)
    first column    the unit above (B)
    others          by the corner C between A and B: B if C is like A and not like B, else A

Two units are alike if they differ by at most tau. A unit that is like its prediction is dropped, and the prediction
replaces it for the units after it, so errors do not accumulate.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.contract import Cut, Method, PatchStage, PixelView, Shape, Share, Stage


class PixelPrune(Method):
    """Drops tokens, before the vision tower, whose pixels are predicted by their neighbours. For screenshots and pages.

    Attributes:
        tau: Largest difference at which two units count as alike, for pixels from 0 to 1. With 0 only equal units are
            dropped, so no pixel is lost.
        metric: Difference of two units: the largest ("max"), mean ("mae") or root mean square ("rmse") over their
            numbers.
    """

    name = "pixelprune"

    tau: Share = 0.0
    metric: Literal["max", "mae", "rmse"] = "max"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (PatchStage(choose=self._choose),)

    def _choose(self, view: PixelView, count: int | None) -> Cut:
        if self.tau == 0:
            return Cut.keep(unequal(view.units).flatten())
        return Cut.keep(unlike(view.levels(), self._alike).flatten())

    def _alike(self, first: Tensor, second: Tensor) -> Tensor:
        """Compare two times (…, numbers) levels from 0 to 255: (…) bool, True where units are alike."""
        differences = (first - second).abs()
        if self.metric == "max":
            # Levels are whole numbers, but 255 · tau may be slightly below one.
            return differences.amax(dim=-1) <= round(255 * self.tau)
        if self.metric == "mae":
            return differences.mean(dim=-1) <= 255 * self.tau
        return differences.square().mean(dim=-1).sqrt() <= 255 * self.tau


def unequal(units: Tensor) -> Tensor:
    """Mark the units that stay if only equal units are alike.

    (frames, rows, columns, numbers) -> (frames, rows, columns) bool.

    A dropped unit equals its prediction, so the original image can be compared: two grids of comparisons are enough.
    """
    # Is each unit equal to the one on its left, and to the one above? False beyond the edge.
    is_left = pad((units[:, :, 1:] == units[:, :, :-1]).all(dim=-1), (1, 0))
    is_above = pad((units[:, 1:] == units[:, :-1]).all(dim=-1), (0, 0, 1, 0))
    # C is above A, and on the left of B. The padding makes B predict column 0, and A predict row 0.
    corner_is_left = pad(is_above[:, :, :-1], (1, 0), value=True)
    corner_is_above = pad(is_left[:, :-1], (0, 0, 1, 0))
    predicted_above = corner_is_left & ~corner_is_above
    return ~torch.where(predicted_above, is_above, is_left)


def unlike(units: Tensor, alike: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mark the units that stay if similar units are alike. Shapes as for `unequal`.

    `stands` holds, for each place, the index of the unit shown there: its own, or that of its prediction. A unit
    depends on A, B and C, so all units of a diagonal (row + column is constant) are computed at once, from the two
    diagonals before it.
    """
    frames, rows, columns, _ = units.shape
    numbers = units.flatten(0, 2)
    index = torch.arange(len(numbers), device=units.device).view(frames, rows, columns)
    stands = pad(index, (1, 0, 1, 0))  # (frames, rows + 1, columns + 1): a row above and a column on the left
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
        # A dropped unit is replaced by its prediction. `stands` has a border, so its places are shifted by one.
        stands = stands.index_put((frame, row + 1, column + 1), torch.where(leaves, predicted, unit))
    return stands[:, 1:, 1:] == index
