"""AveragePool: the control without any score: the mean over each cell of a coarser grid, behind the projector."""

from foveate.contract import Arriving, Gridded, ImageStage, ImageView, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.grid import into_cells, join
from foveate.core.merge import average
from foveate.errors import UnsupportedError


class AveragePool(Gridded):
    """Averages the vision tokens over the cells of a coarser grid, 24 x 24 over 13 x 14 at a third.

    Adaptive 2-D mean pooling in which cells do not overlap: a token goes into the cell over its centre, so every token
    counts once. If the sides divide evenly, this is `torch.nn.functional.adaptive_avg_pool2d`. A pooled token has the
    position ids of the token at its cell's centre.

    Attributes:
        keep, tokens, retention: See `Gridded`.
    """

    name = "averagepool"

    def stage(self, shape: Shape) -> Stage:
        return ImageStage(side="behind", count=self.left, choose=self._pool, flops=self._flops)

    def _flops(self, arriving: Arriving, width: int) -> int:
        return arriving.tokens * width  # every token is added once

    def _pool(self, view: ImageView, count: int | None) -> Cut | None:
        if not view.grids:
            raise UnsupportedError("The rows and columns of this model's vision tokens are not known. Use Uniform.")
        cells = self.coarsen(view.arriving)
        if cells == view.grids:
            return None
        # Each frame's grid into its cells, then all frames as one: rows are numbered on from frame to frame.
        pooled = join([into_cells(grid, few) for grid, few in zip(view.grids, cells, strict=True)])
        pooled = pooled.to(view.features.device)
        return pooled.with_rows(average(view.features, pooled))
