"""Pictures: their sizes, where the cells of a grid look, and smaller pictures for a tower."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["grid_boxes", "picture_sizes", "smaller"]


def picture_sizes(sizes: Any) -> list[tuple[int, int]]:
    """Heights and widths, from what a processor makes of them: a tensor, or a list."""
    pairs = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    return [(int(height), int(width)) for height, width in pairs]


def grid_boxes(height: int, width: int) -> Tensor:
    """The cells of a grid in raster order: (height · width, 4) float32, x0, y0, x1, y1 in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")  # row and column of each cell
    left, top = x / width, y / height
    right, bottom = (x + 1) / width, (y + 1) / height
    cells = torch.stack((left, top, right, bottom), dim=-1)  # (height, width, 4)
    return cells.reshape(-1, 4).float()


def smaller(pictures: Tensor, height: int, width: int) -> Tensor:
    """Pictures, (count, channels, rows, columns), resized to height x width: bilinear and antialiased, so that every
    pixel counts."""
    resized = interpolate(pictures.float(), (height, width), mode="bilinear", antialias=True)
    small: Tensor = resized.to(pictures.dtype)
    return small
