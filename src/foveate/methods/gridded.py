"""What AveragePool and Resize share: an image's token grids get coarser before the decoder, by a share."""

from typing import ClassVar

from foveate.core.grid import Grid, coarser
from foveate.methods.entering import EnteringShare
from foveate.methods.stages import Arriving

__all__ = ["Gridded"]


class Gridded(EnteringShare):
    """Coarser token grids before the decoder.

    Attributes:
        keep: Share of an image's vision tokens that its grids may have afterwards, in (0, 1]. The new grid is the
            largest within this share that is near the picture's aspect ratio; every grid keeps one token.
        tokens: Instead of `keep`: the number of tokens that an image's grids may have.
        retention: Another name for `keep`: the name that budgets have.
    """

    usual_keep: ClassVar[float] = 1 / 3

    def coarsen(self, arriving: Arriving) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become."""
        mean = self.budget.mean(arriving.entered)
        cells = sum(rows * columns for rows, columns in arriving.grids)
        # Tokens left for each that arrives: 192 of 576 are a third, so a 24 x 24 grid may have 192 cells.
        each = (mean - arriving.reserved) / cells
        return tuple(coarser((rows, columns), each * rows * columns) for rows, columns in arriving.grids)

    def left(self, arriving: Arriving) -> int | None:
        """Tokens left of an image, newlines not counted; None where its grids are not known."""
        if not arriving.grids:
            return None
        grids = self.coarsen(arriving)
        if grids == arriving.grids:
            return arriving.tokens
        return sum(rows * columns for rows, columns in grids)
