"""Token grids: how large a coarser one may be, and which of its cells a token falls into."""

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from foveate.core.cut import Cut

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
        tall, wide = sides
        off_aspect = abs(math.log(tall * columns / (wide * rows)))
        return -tall * wide, round(off_aspect, 9), tall

    return min(_around(grid, most, scale), key=order)


def _around(grid: Grid, most: int, scale: float) -> Iterator[Grid]:
    """The grids to try: each side rounded down and up, and the other as long as it may then be."""
    rows, columns = grid
    for exact in (rows * scale, columns * scale):
        for side in (math.floor(exact), math.ceil(exact)):
            tall = min(max(side, 1), rows, most)
            wide = min(max(side, 1), columns, most)
            yield tall, min(columns, most // tall)
            yield min(rows, most // wide), wide


def into_cells(grid: Grid, cells: Grid, newlines: bool = False) -> Cut:
    """What becomes of the tokens of a grid, in raster order, when it gets coarser: a token goes into the cell over its
    centre, and a cell stands for the token over its own.

    Args:
        grid: Rows and columns of the tokens.
        cells: Rows and columns they become, not more.
        newlines: Every row, before and after, has a newline behind it.
    """
    # Of six columns that become three: columns 0 0 1 1 2 2 (the cell of each), lefts 1 3 5 (the token of each cell).
    rows, columns = _axis(grid[0], cells[0]), _axis(grid[1], cells[1])
    tops, lefts = _axis(cells[0], grid[0]), _axis(cells[1], grid[1])
    if newlines:
        columns = torch.cat((columns, torch.tensor([cells[1]])))
        lefts = torch.cat((lefts, torch.tensor([grid[1]])))
    parent = rows[:, None] * (cells[1] + newlines) + columns  # (rows, columns)
    source = tops[:, None] * (grid[1] + newlines) + lefts
    return Cut.join(source.flatten(), parent.flatten())


def _axis(steps: int, cells: int) -> Tensor:
    """For each of `steps` equal parts of a side, which of its `cells` equal parts its centre lies in."""
    return (2 * torch.arange(steps) + 1) * cells // (2 * steps)


def join(grids: Sequence[Cut]) -> Cut:
    """What becomes of the tokens of several grids, one behind the other."""
    sources, parents, token, row = [], [], 0, 0
    for cut in grids:
        sources.append(cut.source + token)
        parents.append(cut.parent + row)
        token += cut.arriving
        row += len(cut.source)
    return Cut.join(torch.cat(sources), torch.cat(parents))


def grids_of(boxes: Tensor) -> tuple[Grid, ...]:
    """The grids an image's tokens stand in, one behind the other, from where each looks (see `Family.boxes`).

    A token that is neither right of the one before nor the first of the row below begins a new grid, so tiles above
    each other in a single column read as one; newlines, which look nowhere, belong to none.
    """
    corners = boxes[~boxes.isnan().any(dim=-1), :2].tolist()
    starts, first = [], (0.0, 0.0)
    for at, (left, top) in enumerate(corners):
        right = at > 0 and top == corners[at - 1][1] and left > corners[at - 1][0]
        below = at > 0 and top > corners[at - 1][1] and left == first[0]
        if not (right or below):
            starts.append(at)
            first = (left, top)
    grids = []
    for start, end in zip(starts, [*starts[1:], len(corners)], strict=True):
        columns = [top for _, top in corners[start:end]].count(corners[start][1])
        grids.append(((end - start) // columns, columns))
    return tuple(grids)


def frames_of(boxes: Tensor) -> tuple[int, ...]:
    """How many tokens each frame of a video has, from where each looks (see `Family.boxes`).

    A frame begins at the picture's top left corner. A token that looks nowhere belongs to the frame before it, as a
    closing newline does; where the video begins with one, as with a CLS, to the frame behind it.
    """
    in_corner = (boxes[:, :2] == 0).all(dim=-1)
    starts = in_corner.nonzero()[:, 0].tolist()
    if not starts:
        return (len(boxes),)
    edges = [start - starts[0] for start in starts] + [len(boxes)]
    return tuple(end - start for start, end in itertools.pairwise(edges))


def closing_rows(newlines: int) -> int:
    """How many newlines stay where an image's tokens are reduced: the one that ends it; those of tile rows leave."""
    return int(newlines == 1)
