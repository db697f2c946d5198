"""Images: their sizes, the regions that grid cells cover, and smaller images for a tower."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from foveate.core.grid import Grid

Normal = tuple[tuple[float, ...], tuple[float, ...]]
CLIP: Normal = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What a processor subtracts from each channel of pixels in [0, 1], and what it then divides them by."""
IMAGENET: Normal = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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


def blocks(patches: Tensor, block: int) -> Tensor:
    """Group patches into blocks, as pixel shuffle does: each block's patches side by side, row by row.

    (tiles, rows, columns, width) -> (tiles, rows · columns / block², block² · width).
    """
    tiles, rows, columns, width = patches.shape
    cut = patches.reshape(tiles, rows // block, block, columns // block, block, width)
    # (tiles, down, block, across, block, width) -> (tiles, down, across, block, block, width)
    return cut.transpose(2, 3).reshape(tiles, -1, block**2 * width)
