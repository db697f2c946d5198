"""LLaVA-OneVision: a base view, then unpadded tiles with a newline after every row; video frames pooled."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.grid import Grid, into_cells, join
from foveate.families._anyres import NOWHERE, AnyResolution
from foveate.families._encode import Reducer, cells_cut, first_rows, replaced
from foveate.families.base import grid_boxes

__all__ = ["FAMILY", "LlavaOnevision"]


class LlavaOnevision(AnyResolution):
    """Where things are inside `LlavaOnevisionForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava_onevision"
    videos: ClassVar[bool] = True

    @classmethod
    def shrunk(cls, config: Any, rows: int, columns: int) -> Grid:
        """A map of more than about nine tiles' worth of tokens (anyres_max_9) is brought down to them."""
        tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        side = config.vision_config.image_size // config.vision_config.patch_size
        ratio = math.sqrt(rows * columns / (tiles * side**2))
        return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)

    def packed(self, modality: str, views: Sequence[Tensor], given: Mapping[str, Any]) -> list[Tensor]:
        if modality == "video":
            return [self.core.apply_pooling(frames).flatten(0, 1) for frames in views]
        ratio = self.model.config.vision_aspect_ratio
        pack = self.core.pack_image_features
        return list(pack(views, given["image_sizes"], image_newline=None, vision_aspect_ratio=ratio)[0])

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        if modality == "video":
            return [_frames(math.ceil(self.side / 2), length) for length in lengths]
        return super().boxes(modality, given, lengths)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """A video's frames are resized so that their pooled tokens are as many as wanted."""
        if modality != "video":
            return super().encode_smaller(run, modality, given, reducer)
        videos, frames = given["pixel_values_videos"].shape[:2]
        fine = math.ceil(self.side / 2)
        grids = ((fine, fine),) * frames
        coarse = reducer.coarsen(grids, frames * fine**2 + 1, 1)
        if coarse == grids:
            return run(), [None] * videos
        cells = coarse[0]
        views = min(self.side, 2 * cells[0]), min(self.side, 2 * cells[1])
        with replaced(self.core, "apply_pooling", functools.partial(_pool, views, cells)):
            output = self.run_smaller(run, "pixel_values_videos", given, views)
        merge = join([into_cells((fine, fine), cells)] * frames + [into_cells((1, 1), (1, 1))])
        cuts = [cells_cut(rows, merge) for rows in output.pooler_output]
        output.pooler_output = torch.stack([first_rows(rows, merge.arriving) for rows in output.pooler_output])
        return output, cuts

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        crops = super().tower_images(config, modality, given)
        in_sample = given.get("batch_num_images")  # of several images in a sample only the base views are seen
        if modality == "video" or in_sample is None or crops is None:
            return crops
        alone = [int(count) == 1 for count in in_sample for _ in range(int(count))]
        return tuple(count if one else 1 for count, one in zip(crops, alone, strict=True))

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        """With the closing newline or without."""
        vision = config.vision_config
        frames, rest = divmod(size, math.ceil(vision.image_size // vision.patch_size / 2) ** 2)
        return frames if rest in (0, 1) else 0


def _frames(side: int, length: int) -> Tensor | None:
    """Frames one after the other, then one newline."""
    count, rest = divmod(length - 1, side * side)
    return torch.cat((grid_boxes(side, side).repeat(count, 1), NOWHERE)) if rest == 0 else None


def _pool(views: Grid, cells: Grid, frames: Tensor) -> Tensor:
    """`apply_pooling` for frames of other sizes: (frames, tokens of a view, width) -> (frames, cells, width)."""
    maps = frames.view(len(frames), *views, -1).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.interpolate(maps, cells, mode="bilinear")
    return pooled.flatten(2).transpose(1, 2)


FAMILY = LlavaOnevision
