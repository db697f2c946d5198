"""AveragePool: a control without scores. It averages tokens over the cells of a coarser grid, after the projector."""

from foveate.contract import Arriving, Cut, ImageStage, ImageView, Once, Part, Shape, Stage
from foveate.core.grid import Grid, coarser, into_cells, join
from foveate.core.merge import average
from foveate.errors import UnsupportedError


class Gridded(Once):
    """Shared by the methods that give the decoder a coarser token grid.

    Attributes:
        keep: Largest share of an image's vision tokens that the new grids may have, in (0, 1]. The new grid is the
            largest one within this share that is close to the image's aspect ratio. Every grid keeps at least one
            token.
        tokens: Instead of `keep`: the largest number of tokens that an image's grids may have.
        retention: Another name for `keep`, as all budgets have it.
    """

    usual = 1 / 3

    keep: Part | None = None

    def coarsen(self, arriving: Arriving) -> tuple[Grid, ...]:
        """Return the new token grid of each frame or view of an image, as (rows, columns)."""
        cells = sum(rows * columns for rows, columns in arriving.grids)
        # Tokens left per arriving token: 192 of 576 is a third, so a 24 x 24 grid may have 192 cells.
        each = (self.mean(arriving) - arriving.reserved) / cells
        return tuple(coarser((rows, columns), each * rows * columns) for rows, columns in arriving.grids)

    def cells(self, arriving: Arriving) -> int | None:
        """The number of tokens left of an image, newlines not counted. None if its grids are not known."""
        if not arriving.grids:
            return None
        grids = self.coarsen(arriving)
        if grids == arriving.grids:
            return arriving.tokens
        return sum(rows * columns for rows, columns in grids)


class AveragePool(Gridded):
    """Averages the vision tokens over the cells of a coarser grid. At a third, a 24 x 24 grid becomes 13 x 14.

    This is adaptive 2-D mean pooling with cells that do not overlap: each token counts once, in the cell above its
    centre. If the sides divide evenly, it equals `torch.nn.functional.adaptive_avg_pool2d`. A pooled token takes the
    position ids of the token at its cell's centre.

    Attributes:
        keep, tokens, retention: See `Gridded`.
    """

    name = "averagepool"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(side="behind", count=self.cells, choose=self._pool),)

    def _pool(self, view: ImageView, count: int | None) -> Cut | None:
        if not view.grids:
            raise UnsupportedError("The rows and columns of this model's vision tokens are not known. Use Uniform.")
        cells = self.coarsen(view.arriving)
        if cells == view.grids:
            return None
        # Assign each frame's tokens to its cells, then join the frames: row numbers continue from frame to frame.
        pooled = join([into_cells(grid, few) for grid, few in zip(view.grids, cells, strict=True)])
        pooled = pooled.to(view.features.device)
        return pooled.with_rows(average(view.features, pooled))
