"""ThinTower: run late blocks of the vision tower on a third of its rows, and restore all rows after the last block.

foveate's own method. Restoring rows is IPCV's idea (arXiv:2512.18747), weighting a row by its size is ToMe's
(arXiv:2210.09461), and the picks are DivPrune's (arXiv:2503.02175).

    h       rows that enter block b; d = 1 − cosine
    K       k = max(1, keep · n, halves rounded up) of a segment's n rows: greedy max-min by d, ⌈k / 64⌉ a step
    i(j)    the row of K nearest to row j, by |h_j − h_i|², in the segment; a row of K is its own
    s_i     the number of rows j with i(j) = i: log s_i is added to the logits of key i, in every block from b on
    y_j     h_j + (y_i − h_i), i = i(j), for rows that were dropped: restored after the last block

A segment is a set of rows that attend only to each other: an image, a tile, a frame. In blocks with window attention, s
counts the rows within the window. A CLS stays, has s = 1, and no row is assigned to it.
"""

from typing import Literal

from torch import Tensor

from foveate.contract import Arriving, Method, PatchView, Shape, Share, Stage, ThinStage, half_up
from foveate.core.rank import top
from foveate.core.thin import neighbour_difference, spread_in_steps
from foveate.errors import UnsupportedError

ENOUGH = 0.3  # keep from which "unlike" is as good as "maxmin"; at a ninth it is worse


class ThinTower(Method):
    """Runs late blocks of the vision tower on some rows. It drops no vision token; combine it with methods that do.

    Attributes:
        keep: Share of each segment's rows that run, in [0, 1], at least one row. 1 leaves the tower unchanged.
        at: The block before which rows leave, as a share of the blocks that feed the projector.
        pick: "maxmin" keeps the rows least similar to one another. "unlike" keeps those least similar to their
            neighbours in the grid; it needs one pass, and is as good at a third. "auto" is "unlike" for a keep of 0.3
            or more if rows are on a grid, else "maxmin".
    """

    name = "thintower"

    keep: Share = 1 / 3
    at: Share = 1 / 8
    pick: Literal["auto", "maxmin", "unlike"] = "auto"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keep == 1:
            return ()
        return (ThinStage(at=self.at, count=self.rows, pick=self._pick),)

    def rows(self, arriving: Arriving) -> int:
        """Number of a segment's rows that run (k)."""
        return max(1, half_up(self.keep * arriving.tokens))

    def _by_neighbours(self, grid: object) -> bool:
        """Tell if rows on this grid, or on none, are compared with their neighbours."""
        return self.pick == "unlike" or (self.pick == "auto" and self.keep >= ENOUGH and bool(grid))

    def _pick(self, view: PatchView, count: int) -> Tensor:
        if not self._by_neighbours(view.grid):
            return spread_in_steps(view.patches, count)
        if view.grid is None:
            raise UnsupportedError(
                "pick='unlike' compares rows with their neighbours, but some rows were dropped before the tower. "
                "Use pick='maxmin'."
            )
        return top(neighbour_difference(view.patches, view.grid), count)
