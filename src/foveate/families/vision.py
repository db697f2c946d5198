"""Images: how they become vision tokens, the regions that these cover, and smaller images for a tower."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.core.grid import Grid

Normal = tuple[tuple[float, ...], tuple[float, ...]]
CLIP: Normal = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What a processor subtracts from each channel of pixels in [0, 1], and what it then divides them by."""
IMAGENET: Normal = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class PictureLayout:
    """How an image or a video becomes vision tokens. Example: two frames of 1 x 2 tokens, each after a CLS.

        CLS a b CLS c d        grids ((1, 2), (1, 2)), beside (0, 3)

    Attributes:
        grids: Rows and columns of the tokens of each view or frame, in order. None if unknown.
        beside: Indices of the tokens that are in no grid, such as newlines.
        images: Number of images that the tower encodes for it, if not one for each grid.
        frames: Number of frames of a video that has so many tokens. 0 if there is none, or the family does not tell.
        place: Turns the cells of the grids, each in [0, 1] of its grid, into regions of the image, (cells, 4). Returns
            None if it cannot tell. None: every grid shows the whole image.
    """

    grids: tuple[Grid, ...] | None = None
    beside: Sequence[int] = ()
    images: int | None = None
    frames: int = 0
    place: Callable[[Tensor], Tensor | None] | None = None

    @property
    def tower_images(self) -> int | None:
        """Number of images that the tower encodes for it: tiles, frames and the like. None if unknown."""
        return self.images or len(self.grids or ()) or None

    @property
    def in_grids(self) -> Tensor:
        """Mark the tokens that are in a grid, (tokens,) bool."""
        cells = sum(map(math.prod, self.grids or ()))
        is_cell = torch.ones(cells + len(self.beside), dtype=torch.bool)
        is_cell[[*self.beside]] = False
        return is_cell

    @property
    def cells(self) -> Tensor:
        """Grid, row and column of each token, (tokens, 3) int64; −1 for a token beside the grids."""
        of_grids = [torch.zeros(0, 3, dtype=torch.int64)]
        for index, (rows, columns) in enumerate(self.grids or ()):
            of_grids.append(torch.cartesian_prod(torch.tensor([index]), torch.arange(rows), torch.arange(columns)))
        in_grids = self.in_grids
        return torch.full((len(in_grids), 3), -1).index_put((in_grids,), torch.cat(of_grids))

    @functools.cached_property
    def boxes(self) -> Tensor | None:
        """The region that each token covers, (tokens, 4) float32; NaN for a token beside the grids. None if unknown.

        A region is x0, y0, x1, y1 in [0, 1] of the image as the processor cut it.
        """
        cells = boxes_on(self.grids) if self.grids else None
        if cells is not None and self.place is not None:
            cells = self.place(cells)
        if cells is None:
            return None
        boxes = cells.new_full((len(cells) + len(self.beside), 4), math.nan)
        boxes[self.in_grids] = cells
        return boxes


def picture_sizes(sizes: Any) -> list[tuple[int, int]]:
    """Heights and widths of images, from a processor's tensor or list."""
    pairs = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in pairs]


def grid_boxes(height: int, width: int) -> Tensor:
    """The cells of a grid in raster order: (height · width, 4) float32, x0, y0, x1, y1 in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")  # row and column of each cell
    left, top = x / width, y / height
    right, bottom = (x + 1) / width, (y + 1) / height
    cells = torch.stack((left, top, right, bottom), dim=-1)  # (height, width, 4)
    return cells.reshape(-1, 4).float()


def boxes_on(grids: Sequence[Grid]) -> Tensor:
    """The cells of several grids in order, as `grid_boxes`. Equal grids, such as frames, are computed once."""
    boxes = {grid: grid_boxes(*grid) for grid in set(grids)}
    return torch.cat([boxes[grid] for grid in grids])


def smaller(pictures: Tensor, height: int, width: int) -> Tensor:
    """Resize images, (count, channels, rows, columns), to height x width: bilinear and antialiased."""
    resized = interpolate(pictures.float(), (height, width), mode="bilinear", antialias=True)
    small: Tensor = resized.to(pictures.dtype)
    return small


def patch_blocks(patches: Tensor, block: int) -> Tensor:
    """Group patches into blocks, as pixel shuffle does: each block's patches side by side, row by row.

    (tiles, rows, columns, width) -> (tiles, rows · columns / block², block² · width).
    """
    tiles, rows, columns, width = patches.shape
    cut = patches.reshape(tiles, rows // block, block, columns // block, block, width)
    # (tiles, down, block, across, block, width) -> (tiles, down, across, block, block, width)
    return cut.transpose(2, 3).reshape(tiles, -1, block**2 * width)
