"""ThinTower: late blocks of the vision tower run on a third of its rows, and behind them all rows are there again.

foveate's own. Giving rows back is IPCV's idea (arXiv:2512.18747), counting a row as many is ToMe's (arXiv:2210.09461),
and the picks are DivPrune's (arXiv:2503.02175).

    h       rows that go into block b; d = 1 − cosine
    K       k = max(1, keep · n, halves up) of a segment's n rows: greedy max-min by d, ⌈k / 64⌉ a step
    i(j)    the row of K nearest to row j, by |h_j − h_i|², in the segment; of a row of K itself
    s_i     how many rows have i as theirs: log s_i is added to the logits of key i, in every block from b on
    y_j     h_j + (y_i − h_i), i = i(j), for rows that left: behind the last block

A segment is what attends to itself alone: a picture, a tile, a frame; where blocks look through windows, s counts the
rows of the window there. A CLS stays, has s = 1, and no row goes with it.
"""

from typing import Literal

from torch import Tensor

from foveate.contract import Arriving, Method, PatchView, Shape, Share, Stage, ThinStage, half_up
from foveate.core.picks import cosine_flops
from foveate.core.rank import top
from foveate.core.thin import neighbour_difference, spread_in_steps
from foveate.errors import UnsupportedError

ENOUGH = 0.3  # share of the rows from which on those unlike their neighbours do as well: not at a ninth


class ThinTower(Method):
    """Runs late blocks of the vision tower on some rows. No vision token is dropped: methods behind it do that.

    Attributes:
        keep: Share of each segment's rows that run, in [0, 1], one at least; 1: the untouched tower.
        at: Before which block rows leave, as a share of the blocks that the projector reads.
        pick: "maxmin": the rows least like one another. "unlike": those least like their neighbours in the grid, which
            costs one pass and is as good at a third. "auto": "unlike" from a keep of 0.3 on where rows are on a grid,
            else "maxmin".
    """

    name = "thintower"

    keep: Share = 1 / 3
    at: Share = 1 / 8
    pick: Literal["auto", "maxmin", "unlike"] = "auto"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keep == 1:
            return ()
        return (ThinStage(at=self.at, count=self.rows, pick=self._pick, flops=self._flops),)

    def rows(self, arriving: Arriving) -> int:
        """k of a segment."""
        return max(1, half_up(self.keep * arriving.tokens))

    def _by_neighbours(self, grid: object) -> bool:
        """Whether rows that are on this grid, or on none, are compared with their neighbours."""
        return self.pick == "unlike" or (self.pick == "auto" and self.keep >= ENOUGH and bool(grid))

    def _pick(self, view: PatchView, count: int) -> Tensor:
        if not self._by_neighbours(view.grid):
            return spread_in_steps(view.patches, count)
        if view.grid is None:
            raise UnsupportedError(
                "pick='unlike' compares rows with their neighbours, and some have left before the tower. "
                "Use pick='maxmin'."
            )
        return top(neighbour_difference(view.patches, view.grid), count)

    def _flops(self, arriving: Arriving, width: int) -> int:
        if self._by_neighbours(arriving.grids):
            return 4 * arriving.tokens * width  # products with the row below and the one right of it
        return cosine_flops(arriving, width)


METHOD = ThinTower
