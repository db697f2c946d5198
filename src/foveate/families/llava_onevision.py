"""LLaVA-OneVision: a base view, then unpadded tiles with a newline after every row; video frames pooled."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "LlavaOnevision"]

MAX_TILES = 9  # anyres_max_9: a larger map is shrunk to nine tiles' worth of tokens
NOWHERE = torch.full((1, 4), float("nan"))


class LlavaOnevision(Family):
    """Where things are inside `LlavaOnevisionForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava_onevision"

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        vision = self.model.config.vision_config  # type: ignore[union-attr]
        side = vision.image_size // vision.patch_size
        if modality == "video":
            pooled = math.ceil(side / 2)
            return [_frames(pooled, length) for length in lengths]
        sizes = given["image_sizes"]
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        return [_image(side, length, height, width) for length, (height, width) in zip(lengths, sizes, strict=True)]


def _frames(side: int, length: int) -> Tensor | None:
    """Frames one after the other, then one newline."""
    count, rest = divmod(length - 1, side * side)
    return torch.cat((grid_boxes(side, side).repeat(count, 1), NOWHERE)) if rest == 0 else None


def _image(side: int, length: int, height: int, width: int) -> Tensor | None:
    """The base view, then the tile map, each of its rows closed by a newline."""
    base = grid_boxes(side, side)
    if length == len(base) + 1:
        return torch.cat((base, NOWHERE))
    for rows, columns in _tile_maps(side, height, width):
        if len(base) + rows * (columns + 1) == length:
            cells = grid_boxes(rows, columns).view(rows, columns, 4)
            newlines = NOWHERE.expand(rows, 1, 4)
            return torch.cat((base, torch.cat((cells, newlines), dim=1).reshape(-1, 4)))
    return None


def _tile_maps(side: int, height: int, width: int) -> list[tuple[int, int]]:
    """(rows, columns) of the tile map of a picture on every mosaic of tiles, after unpadding and shrinking.

    Which mosaic the processor chose shows in the token count, so the caller takes the one that fits.
    """
    maps = []
    for tall in range(1, 7):
        for wide in range(1, 7):
            rows, columns = tall * side, wide * side
            if width / height > columns / rows:
                rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
            else:
                columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
            ratio = math.sqrt(rows * columns / (MAX_TILES * side**2))
            maps.append((int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns))
    return maps


FAMILY = LlavaOnevision
