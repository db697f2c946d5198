"""Token grids: how large a coarser one may be, and which of its cells a token falls into."""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.cut import Cut

Grid = tuple[int, int]
"""Rows and columns."""


def coarser(grid: Grid, tokens: float) -> Grid:
    """The grid of at most `tokens` cells, and of 1 x 1 at least, that comes nearest to them and keeps the aspect.

    Each exact side is tried rounded down and up, with the other as long as it may then be. The most cells win; of
    equals the aspect nearest to the grid's, then fewer rows. 24 x 24 gives 13 x 14 for 192 tokens.
    """
    rows, columns = grid
    # A share of a count, in floats, may miss a whole number by a hair.
    most = max(1, math.floor(min(tokens, rows * columns) + 1e-6))
    scale = math.sqrt(most / (rows * columns))

    def order(sides: Grid) -> tuple[int, float, int]:
        tall, wide = sides
        off_aspect = abs(math.log(tall * columns / (wide * rows)))
        return -tall * wide, round(off_aspect, 9), tall

    candidates = []
    for exact in (rows * scale, columns * scale):
        for side in (math.floor(exact), math.ceil(exact)):
            # The side as rows with the most columns that fit, and as columns with the most rows.
            tall, wide = min(max(side, 1), rows, most), min(max(side, 1), columns, most)
            candidates += [(tall, min(columns, most // tall)), (min(rows, most // wide), wide)]
    return min(candidates, key=order)


def into_cells(grid: Grid, cells: Grid, newlines: bool = False) -> Cut:
    """What becomes of the tokens of a grid, in raster order, when it gets coarser.

    A token goes into the cell that its centre lies in. A cell stands for the token that the cell's centre lies in.

    Args:
        grid: Rows and columns of the tokens.
        cells: Rows and columns they become, not more.
        newlines: Every row, before and after, has a newline behind it.
    """
    (tall, wide), (coarse_tall, coarse_wide) = grid, cells
    # Of six columns that become three: columns 0 0 1 1 2 2 (the cell of each), lefts 1 3 5 (the token of each cell).
    rows = _axis(tall, coarse_tall)
    columns = _axis(wide, coarse_wide)
    tops = _axis(coarse_tall, tall)
    lefts = _axis(coarse_wide, wide)
    if newlines:  # one column more, before and after
        columns = torch.cat((columns, torch.tensor([coarse_wide])))
        lefts = torch.cat((lefts, torch.tensor([wide])))
    # Raster order: the number of a cell is its row times the length of a row, plus its column.
    parent = rows[:, None] * (coarse_wide + newlines) + columns  # (rows, columns)
    source = tops[:, None] * (wide + newlines) + lefts
    return Cut.join(source.flatten(), parent.flatten())


def _axis(steps: int, cells: int) -> Tensor:
    """For each of `steps` equal parts of a side, which of its `cells` equal parts its centre lies in."""
    return (2 * torch.arange(steps) + 1) * cells // (2 * steps)


def join(grids: Sequence[Cut]) -> Cut:
    """What becomes of the tokens of several grids, one behind the other."""
    sources: list[Tensor] = []
    parents: list[Tensor] = []
    token = row = 0  # how many stand in the grids before
    for cut in grids:
        sources.append(cut.source + token)
        parents.append(cut.parent + row)
        token += cut.arriving
        row += len(cut.source)
    return Cut.join(torch.cat(sources), torch.cat(parents))


def grids_of(boxes: Tensor) -> tuple[Grid, ...]:
    """The grids an image's tokens stand in, one behind the other, from where each looks (see `Family.boxes`).

    A token begins a new grid if it is neither right of the one before nor the first of the row below. So tiles above
    each other in a single column read as one grid. Newlines look nowhere and belong to no grid.
    """
    looks_somewhere = ~boxes.isnan().any(dim=-1)
    corners = boxes[looks_somewhere, :2].tolist()  # left and top of each token
    starts: list[int] = []
    first_left = previous_left = previous_top = 0.0
    for at, (left, top) in enumerate(corners):
        right = top == previous_top and left > previous_left
        below = top > previous_top and left == first_left
        if at == 0 or not (right or below):
            starts.append(at)
            first_left = left
        previous_left, previous_top = left, top
    grids = []
    for start, end in itertools.pairwise([*starts, len(corners)]):
        _, first_top = corners[start]
        tops = [top for _, top in corners[start:end]]
        columns = tops.count(first_top)
        grids.append(((end - start) // columns, columns))
    return tuple(grids)


def cells_of(boxes: Tensor, grids: Sequence[Grid]) -> Tensor | None:
    """Frame (or view), row and column of each token of an image: (tokens, 3) int64, −1 where it looks nowhere.

    None where the tokens that look somewhere are not as many as the grids have cells.

    Args:
        boxes: Where each token looks (see `Family.boxes`).
        grids: Rows and columns of the grids that they stand in, one behind the other.
    """
    places = (~boxes.isnan().any(dim=-1)).nonzero()[:, 0]
    parts = [boxes.new_zeros(0, 3, dtype=torch.int64)]
    for frame, (rows, columns) in enumerate(grids):
        parts.append(torch.cartesian_prod(torch.tensor([frame]), torch.arange(rows), torch.arange(columns)).view(-1, 3))
    cells = torch.cat(parts)
    if len(cells) != len(places):
        return None
    return torch.full((len(boxes), 3), -1).index_put((places,), cells)


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
    """How many newlines stay when an image's tokens are reduced.

    A single one ends the image and stays. Several end tile rows, and leave.
    """
    return int(newlines == 1)


def crops_of(grids: Sequence[Grid], tokens: int) -> list[Tensor]:
    """Which of an image's tokens each of its views has: ordinals, ascending.

    A grid is a view. One that is larger than the first is a map of crops as large as the first, from which as much was
    cut off on either side (LLaVA-NeXT): a base view of 1 x 3 and a map of 1 x 4 have the crops 0 1 2, 3 4 and 5 6.
    Where the grids are not those of all tokens, all are one view. The grids do not tell if so much was cut off that the
    map would fit into fewer crops (24 x 48 left of 48 x 48): it is read as these.
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
    """Which crop each of `length` tokens is in, if both ends lost as many: 4, of crops of 3, are in 0 0 1 1."""
    lost = -length % side // 2
    return (torch.arange(length) + lost) // side


def neighbours_of(grids: Sequence[Grid], tokens: int) -> Tensor:
    """The tokens above, below, left and right of each: (tokens, 4) int64 ordinals; `tokens` beyond an edge.

    Of a grid of 2 x 2 the first token has 4 2 4 1. Where the grids are not those of all tokens, no token has any.
    """
    if sum(rows * columns for rows, columns in grids) != tokens:
        return torch.full((tokens, 4), tokens)
    parts = [torch.zeros(0, 4, dtype=torch.int64)]
    start = 0
    for rows, columns in grids:
        framed = torch.full((rows + 2, columns + 2), tokens)  # the grid with an edge around it
        framed[1:-1, 1:-1] = torch.arange(start, start + rows * columns).view(rows, columns)
        sides = framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:]
        parts.append(torch.stack(sides, dim=-1).flatten(0, 1))
        start += rows * columns
    return torch.cat(parts)


def windows_of(grids: Sequence[Grid], side: int, tokens: int) -> Tensor:
    """The window of `side` x `side` tokens that each is in: (tokens,) int64, counted on from grid to grid.

    Rows and columns that make no whole window belong to the last one: a grid of 1 x 5 in windows of 2 has 0 0 1 1 1.
    Where the grids are not those of all tokens, all are in one window.
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
    """The region of each token, (tokens,) int64: at most `most` in a grid, counted on from grid to grid.

    Near-square windows of each grid, or runs in raster order, of which the first are the longer ones: five tokens in
    two runs are in 0 0 0 1 1. Where the grids are not known, runs of all tokens.
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
        first += 1 + int(region[-1])  # the last token is in the last region
    return torch.cat(parts)


CHANNELS = 512  # of a block of the Fourier transform


def high_pass(rows: Tensor, grids: Sequence[Grid]) -> Tensor:
    """How much fine content each token has: (tokens, width), grid by grid in raster order -> (tokens,) float32.

    Each channel's 2-D Fourier transform times 1 − exp(−f² / 2s²), transformed back; the mean of the magnitudes. f is
    the frequency's radius in whole numbers and s = 0.1 · min(⌊rows / 2⌋, ⌊columns / 2⌋): 1.2 of 24 x 24, so that only
    radii up to 2 are damped much, by factors 0, 0.29 and 0.75.
    """
    scores = []
    for of_grid, (height, width) in zip(torch.split(rows, [math.prod(grid) for grid in grids]), grids, strict=True):
        sigma = 0.1 * min(height // 2, width // 2)
        down = torch.fft.fftfreq(height, 1 / height, device=of_grid.device)
        across = torch.fft.fftfreq(width, 1 / width, device=of_grid.device)
        radius_squared = down[:, None] ** 2 + across[None] ** 2
        # Of a single row or column, where s is 0, all but the mean passes.
        passes = 1 - torch.exp(-radius_squared / (2 * max(sigma, 1e-3) ** 2))
        total = torch.zeros_like(of_grid[:, 0], dtype=torch.float32)
        for part in torch.split(of_grid, CHANNELS, dim=1):
            planes = part.float().T.reshape(-1, height, width)
            filtered = torch.fft.ifft2(torch.fft.fft2(planes) * passes)
            total = total + filtered.abs().sum(dim=0).flatten()
        scores.append(total / rows.shape[1])
    return torch.cat(scores)
