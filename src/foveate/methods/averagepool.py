"""AveragePool: the control without any score: the mean over each cell of a coarser grid, behind the projector."""

from foveate.contract import Arriving, Cut, ImageStage, ImageView, Once, Part, Shape, Stage
from foveate.core.grid import Grid, coarser, into_cells, join
from foveate.core.merge import average
from foveate.errors import UnsupportedError


class Gridded(Once):
    """Coarser token grids before the decoder.

    Attributes:
        keep: Share of an image's vision tokens that its grids may have afterwards, in (0, 1]. The new grid is the
            largest within this share that is near the picture's aspect ratio; every grid keeps one token.
        tokens: Instead of `keep`: the number of tokens that an image's grids may have.
        retention: Another name for `keep`: the name that budgets have.
    """

    usual = 1 / 3

    keep: Part | None = None

    def coarsen(self, arriving: Arriving) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become."""
        cells = sum(rows * columns for rows, columns in arriving.grids)
        # Tokens left for each that arrives: 192 of 576 are a third, so a 24 x 24 grid may have 192 cells.
        each = (self.mean(arriving) - arriving.reserved) / cells
        return tuple(coarser((rows, columns), each * rows * columns) for rows, columns in arriving.grids)

    def cells(self, arriving: Arriving) -> int | None:
        """Tokens left of an image, newlines not counted; None where its grids are not known."""
        if not arriving.grids:
            return None
        grids = self.coarsen(arriving)
        if grids == arriving.grids:
            return arriving.tokens
        return sum(rows * columns for rows, columns in grids)


class AveragePool(Gridded):
    """Averages the vision tokens over the cells of a coarser grid, 24 x 24 over 13 x 14 at a third.

    Adaptive 2-D mean pooling in which cells do not overlap: a token goes into the cell over its centre, so every token
    counts once. If the sides divide evenly, this is `torch.nn.functional.adaptive_avg_pool2d`. A pooled token has the
    position ids of the token at its cell's centre.

    Attributes:
        keep, tokens, retention: See `Gridded`.
    """

    name = "averagepool"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(side="behind", count=self.cells, choose=self._pool, flops=self.flops),)

    def flops(self, arriving: Arriving, width: int) -> int:
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


METHOD = AveragePool
