"""AveragePool: the control that knows nothing: the mean over each cell of a coarser grid, behind the projector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from foveate.core.grid import into_cells, join
from foveate.core.merge import average
from foveate.errors import UnsupportedError
from foveate.methods.base import Cut, TowerView
from foveate.methods.grid import GridMethod

__all__ = ["METHOD", "AveragePool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragePool(GridMethod):
    """Averages the vision tokens over the cells of a coarser grid, 24 x 24 over 13 x 14 at a third.

    Adaptive 2-D mean pooling in which cells do not overlap: a token goes into the cell over its centre, so every token
    counts once. Where the sides divide, that is `torch.nn.functional.adaptive_avg_pool2d`. A pooled token has the
    position ids of the token at its cell's centre.

    Attributes:
        keep: See `GridMethod`.
    """

    name: ClassVar[str] = "averagepool"

    @property
    def stage(self) -> Literal["pixels", "tower", "projector"]:
        return "projector"

    def reduce(self, view: TowerView) -> Cut | None:
        if not view.grids:
            raise UnsupportedError("The rows and columns of this model's vision tokens are not known: use Uniform.")
        cells = self.coarsen(view.grids, view.entered, view.reserved)
        if cells == view.grids:
            return None
        merge = join([into_cells(grid, few) for grid, few in zip(view.grids, cells, strict=True)])
        merge = merge.to(view.features.device)
        return Cut(merge.origin, (len(merge),), average(view.features, merge), merge.assign)

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        """Every token is added once."""
        return sum(sizes) * width if self.reduces_tower else 0


METHOD = AveragePool
