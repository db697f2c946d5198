"""Token grids: the size of a coarser grid, the cell that each token falls into, and the parts of a grid."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.cut import Cut

Grid = tuple[int, int]
"""Rows and columns."""


def coarser(grid: Grid, tokens: float) -> Grid:
    """The grid of at most `tokens` cells, at least 1 x 1, that comes nearest to this count and keeps the aspect ratio.

    Each exact side is tried rounded down and up, with the other side as long as possible. The grid with the most cells
    wins; of equals the one nearest to the aspect ratio, then the one with fewer rows. 24 x 24 gives 13 x 14 for 192
    tokens.
    """
    rows, columns = grid
    # A share of a count, in floats, may be slightly below a whole number.
    most = max(1, math.floor(min(tokens, rows * columns) + 1e-6))
    scale = math.sqrt(most / (rows * columns))

    def order(sides: Grid) -> tuple[int, float, int]:
        tall, wide = sides
        off_aspect = abs(math.log(tall * columns / (wide * rows)))
        return -tall * wide, round(off_aspect, 9), tall

    candidates = []
    for exact in (rows * scale, columns * scale):
        for side in (math.floor(exact), math.ceil(exact)):
            # Take the side as the rows, with as many columns as fit, and as the columns, with as many rows as fit.
            tall, wide = min(max(side, 1), rows, most), min(max(side, 1), columns, most)
            candidates += [(tall, min(columns, most // tall)), (min(rows, most // wide), wide)]
    return min(candidates, key=order)


def into_cells(grid: Grid, cells: Grid, newlines: bool = False) -> Cut:
    """Assign the tokens of a grid, in raster order, to the cells of a coarser grid.

    A token goes into the cell that contains the token's centre. A cell stands for the token that contains the cell's
    centre.

    Args:
        grid: Rows and columns of the tokens.
        cells: Rows and columns of the coarser grid, not more than those of `grid`.
        newlines: True if every row ends with a newline, in both grids.
    """
    (tall, wide), (coarse_tall, coarse_wide) = grid, cells
    # Six columns that become three: columns = 0 0 1 1 2 2 (cell of each token), lefts = 1 3 5 (token of each cell).
    rows = _axis(tall, coarse_tall)
    columns = _axis(wide, coarse_wide)
    tops = _axis(coarse_tall, tall)
    lefts = _axis(coarse_wide, wide)
    if newlines:  # one column more, before and after
        columns = torch.cat((columns, torch.tensor([coarse_wide])))
        lefts = torch.cat((lefts, torch.tensor([wide])))
    # Number of a cell in raster order: its row times the length of a row, plus its column.
    parent = rows[:, None] * (coarse_wide + newlines) + columns  # (rows, columns)
    source = tops[:, None] * (wide + newlines) + lefts
    return Cut.join(source.flatten(), parent.flatten())


def _axis(steps: int, cells: int) -> Tensor:
    """For each of `steps` equal parts of a side, which of `cells` equal parts contains its centre: (steps,) int64."""
    return (2 * torch.arange(steps) + 1) * cells // (2 * steps)


def join(grids: Sequence[Cut]) -> Cut:
    """Join the cuts of several grids that follow one another into one cut."""
    sources: list[Tensor] = []
    parents: list[Tensor] = []
    token = row = 0  # tokens and rows of the grids before
    for cut in grids:
        sources.append(cut.source + token)
        parents.append(cut.parent + row)
        token += cut.arriving
        row += len(cut.source)
    return Cut.join(torch.cat(sources), torch.cat(parents))


def frames_of(boxes: Tensor) -> tuple[int, ...]:
    """The number of tokens in each frame of a video, from the region that each token covers (`PictureLayout.boxes`).

    A frame begins at the top left corner of the image. A token that covers no region, such as a closing newline,
    belongs to the frame before it; at the beginning of the video, such as a CLS, to the first frame.
    """
    in_corner = (boxes[:, :2] == 0).all(dim=-1)
    starts = in_corner.nonzero()[:, 0].tolist()
    if not starts:
        return (len(boxes),)
    edges = [start - starts[0] for start in starts] + [len(boxes)]
    return tuple(end - start for start, end in itertools.pairwise(edges))


def closing_rows(newlines: int) -> int:
    """Number of newlines that stay when an image's tokens are reduced.

    A single newline ends the image and stays. Several newlines end tile rows and are dropped.
    """
    return int(newlines == 1)


def crops_of(grids: Sequence[Grid], tokens: int) -> list[Tensor]:
    """The tokens of each of an image's views: indices, ascending.

    A grid is a view. A grid larger than the first one is a map of crops of the first one's size, with equal amounts cut
    off on opposite sides (LLaVA-NeXT): a base view of 1 x 3 and a map of 1 x 4 have the crops 0 1 2, 3 4 and 5 6. If
    the grids do not contain all tokens, all tokens are one view. If so much was cut off that the map would fit into
    fewer crops (24 x 48 left of 48 x 48), the grids do not show it, and the map is read as these fewer crops.
    """
    if sum(rows * columns for rows, columns in grids) != tokens:
        return [torch.arange(tokens)]
    crops: list[Tensor] = []
    start = 0
    for rows, columns in grids:
        tall, wide = grids[0]
        down, across = _crop_of(rows, tall), _crop_of(columns, wide)
        crop = (down[:, None] * (columns + 1) + across).flatten()
        crops.extend((crop == number).nonzero()[:, 0] + start for number in sorted(set(crop.tolist())))
        start += rows * columns
    return crops


def _crop_of(length: int, side: int) -> Tensor:
    """The crop of each of `length` tokens, if both ends lost equally many: 4, of crops of 3, are in 0 0 1 1."""
    lost = -length % side // 2
    return (torch.arange(length) + lost) // side


def neighbours_of(grids: Sequence[Grid], tokens: int) -> Tensor:
    """The tokens above, below, left and right of each: (tokens, 4) int64 indices; `tokens` beyond an edge.

    In a 2 x 2 grid the first token has 4 2 4 1. If the grids do not contain all tokens, no token has neighbours.
    """
    if sum(rows * columns for rows, columns in grids) != tokens:
        return torch.full((tokens, 4), tokens)
    parts = [torch.zeros(0, 4, dtype=torch.int64)]
    start = 0
    for rows, columns in grids:
        framed = torch.full((rows + 2, columns + 2), tokens)  # the grid with a border
        framed[1:-1, 1:-1] = torch.arange(start, start + rows * columns).view(rows, columns)
        sides = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
        parts.append(torch.stack(sides, dim=-1).flatten(0, 1))
        start += rows * columns
    return torch.cat(parts)


def windows_of(grids: Sequence[Grid], side: int, tokens: int) -> Tensor:
    """The window of `side` x `side` tokens that each token is in: (tokens,) int64, numbered on from grid to grid.

    Rows and columns that do not fill a window belong to the last one: a grid of 1 x 5 in windows of 2 has 0 0 1 1 1. If
    the grids do not contain all tokens, all are in one window.
    """
    if sum(rows * columns for rows, columns in grids) != tokens:
        return torch.zeros(tokens, dtype=torch.int64)
    parts = [torch.zeros(0, dtype=torch.int64)]
    first = 0
    for rows, columns in grids:
        down, across = max(1, rows // side), max(1, columns // side)
        row = (torch.arange(rows) // min(side, rows)).clamp(max=down - 1)
        column = (torch.arange(columns) // min(side, columns)).clamp(max=across - 1)
        parts.append((first + row[:, None] * across + column).flatten())
        first += down * across
    return torch.cat(parts)


def regions_of(grids: Sequence[Grid], tokens: int, most: int, windows: bool) -> Tensor:
    """The region of each token, (tokens,) int64: at most `most` in a grid, numbered on from grid to grid.

    Regions are near-square windows of each grid, or runs in raster order, of which the first are longer: five tokens in
    two runs are in 0 0 0 1 1. If the grids are not known, they are runs of all tokens.
    """
    parts = []
    first = 0
    for grid in grids or ((1, tokens),):
        cells = math.prod(grid)
        if windows and grids:
            region = into_cells(grid, coarser(grid, most)).parent
        else:
            runs = torch.arange(cells).tensor_split(min(most, cells))
            region = torch.cat([torch.full_like(run, number) for number, run in enumerate(runs)])
        parts.append(region + first)
        first += 1 + int(region[-1])  # the last token has the highest region
    return torch.cat(parts)


CHANNELS = 512  # channels that are Fourier transformed at a time


def high_pass(rows: Tensor, grids: Sequence[Grid]) -> Tensor:
    """The amount of fine content of each token: (tokens, width), grid by grid in raster order -> (tokens,) float32.

    Each channel's 2-D Fourier transform is multiplied by 1 − exp(−f² / 2s²) and transformed back. The result is the
    mean of the magnitudes over channels. f is the radius of the frequency in whole numbers, and s = 0.1 · min(⌊rows /
    2⌋, ⌊columns / 2⌋). For 24 x 24 s is 1.2, which damps only radii up to 2 much, by factors 0, 0.29 and 0.75.
    """
    scores = []
    for of_grid, (height, width) in zip(torch.split(rows, [math.prod(grid) for grid in grids]), grids, strict=True):
        sigma = 0.1 * min(height // 2, width // 2)
        down = torch.fft.fftfreq(height, 1 / height, dtype=torch.float32, device=of_grid.device)
        across = torch.fft.fftfreq(width, 1 / width, dtype=torch.float32, device=of_grid.device)
        radius_squared = down[:, None] ** 2 + across[None] ** 2
        # For a single row or column s is 0: everything but the mean passes.
        passes = 1 - torch.exp(-radius_squared / (2 * max(sigma, 1e-3) ** 2))
        total = torch.zeros_like(of_grid[:, 0], dtype=torch.float32)
        for part in torch.split(of_grid, CHANNELS, dim=1):
            planes = part.float().T.reshape(-1, height, width)
            filtered = torch.fft.ifft2(torch.fft.fft2(planes) * passes)
            total = total + filtered.abs().sum(dim=0).flatten()
        scores.append(total / rows.shape[1])
    return torch.cat(scores)
