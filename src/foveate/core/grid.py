"""Token grids: how large a coarser one may be, and which of its cells a token falls into."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foveate.core.merge import Merge

__all__ = ["Grid", "closing_rows", "coarser", "frames_of", "grids_of", "into_cells", "join"]

Grid = tuple[int, int]
"""Rows and columns."""


def coarser(grid: Grid, tokens: float) -> Grid:
    """The grid of at most `tokens` cells, and of 1 x 1 at least, that comes nearest to them and keeps the aspect.

    Around the exact sides, √tokens apart as the grid's are, each side is tried rounded down and up, with the most the
    other may then be: the largest product wins, then the truest aspect, then fewer rows. 24 x 24 gives 13 x 14 for 192.
    """
    rows, columns = grid
    most = max(1, math.floor(min(tokens, rows * columns) + 1e-6))  # a share of a count, in floats, may miss by a hair
    scale = math.sqrt(most / (rows * columns))

    def order(sides: Grid) -> tuple[int, float, int]:
        return -sides[0] * sides[1], round(abs(math.log(sides[0] * columns / (sides[1] * rows))), 9), sides[0]

    return min(_around(grid, most, scale), key=order)


def _around(grid: Grid, most: int, scale: float) -> Iterator[Grid]:
    rows, columns = grid
    for exact in (rows * scale, columns * scale):
        for side in (math.floor(exact), math.ceil(exact)):
            tall, wide = min(max(side, 1), rows, most), min(max(side, 1), columns, most)
            yield tall, min(columns, most // tall)
            yield min(rows, most // wide), wide


def into_cells(grid: Grid, cells: Grid, newlines: bool = False) -> Merge:
    """What becomes of the tokens of a grid, in raster order, when it gets coarser: a token goes into the cell over its
    centre, and a cell stands for the token over its own.

    Args:
        grid: Rows and columns of the tokens.
        cells: Rows and columns they become, not more.
        newlines: Every row, before and after, has a newline behind it.
    """
    rows, columns = (_axis(fine, coarse) for fine, coarse in zip(grid, cells, strict=True))
    tops, lefts = (_axis(coarse, fine) for fine, coarse in zip(grid, cells, strict=True))
    if newlines:
        columns = torch.cat((columns, torch.tensor([cells[1]])))
        lefts = torch.cat((lefts, torch.tensor([grid[1]])))
    assign = rows[:, None] * (cells[1] + newlines) + columns
    origin = tops[:, None] * (grid[1] + newlines) + lefts
    return Merge(origin.flatten(), assign.flatten())


def _axis(steps: int, cells: int) -> Tensor:
    """For each of `steps` equal parts of a side, which of its `cells` equal parts its centre lies in."""
    return (2 * torch.arange(steps) + 1) * cells // (2 * steps)


def join(merges: Sequence[Merge]) -> Merge:
    """What becomes of the tokens of several grids, one behind the other."""
    origins, assigns, token, row = [], [], 0, 0
    for merge in merges:
        origins.append(merge.origin + token)
        assigns.append(merge.assign + row)
        token, row = token + len(merge.assign), row + len(merge)
    return Merge(torch.cat(origins), torch.cat(assigns))


def grids_of(boxes: Tensor) -> tuple[Grid, ...]:
    """The grids an image's tokens stand in, one behind the other, from where each looks (see `Family.boxes`).

    A grid begins at the picture's top left corner; newlines, which look nowhere, belong to none.
    """
    tops, lefts = boxes[~boxes.isnan().any(dim=-1), 1].tolist(), boxes[~boxes.isnan().any(dim=-1), 0].tolist()
    starts = [at for at, corner in enumerate(zip(lefts, tops, strict=True)) if corner == (0.0, 0.0)]
    grids = []
    for start, end in zip(starts, [*starts[1:], len(tops)], strict=True):
        columns = tops[start:end].count(0.0)
        grids.append(((end - start) // columns, columns))
    return tuple(grids)


def frames_of(boxes: Tensor) -> tuple[int, ...]:
    """How many tokens each frame of a video has, from where each looks (see `Family.boxes`).

    A frame begins at the picture's top left corner. A token that looks nowhere belongs to the frame before it, as a
    closing newline does; where the video begins with one, as with a CLS, to the frame behind it.
    """
    starts = (boxes[:, :2] == 0).all(dim=-1).nonzero()[:, 0].tolist()
    if not starts:
        return (len(boxes),)
    edges = [start - starts[0] for start in starts] + [len(boxes)]
    return tuple(end - start for start, end in itertools.pairwise(edges))


def closing_rows(newlines: int) -> int:
    """How many newlines stay where an image's tokens are reduced: the one that ends it; those of tile rows leave."""
    return int(newlines == 1)
