"""LLaVA-NeXT-Video: images as LLaVA-NeXT; a video's frames pooled by 2 x 2, one behind the other, no newline."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveate.core.flops import linear
from foveate.core.grid import into_cells, join
from foveate.families._encode import Reducer, cells_cut, first_rows, replaced
from foveate.families._towers import llava_cost, picture_tokens
from foveate.families.base import grid_boxes
from foveate.families.llava_next import LlavaNext

__all__ = ["FAMILY", "LlavaNextVideo"]


class LlavaNextVideo(LlavaNext):
    """Where things are inside `LlavaNextVideoForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava_next_video"
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # frames come one by one before

    def packed(self, modality: str, views: Sequence[Tensor], given: Mapping[str, Any]) -> list[Tensor]:
        """Scores are averaged also where features pass through a convolution."""
        if modality != "video":
            return super().packed(modality, views, given)
        pool = self.core.vision_resampler.pool
        pool = nn.AvgPool2d(self.stride) if isinstance(pool, nn.Conv2d) else pool
        return [_pooled(pool, frames, self.side, self.side).flatten(0, 1) for frames in views]

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        if modality != "video":
            return super().boxes(modality, given, lengths)
        fine = self.side // self.stride
        frame = grid_boxes(fine, fine) * (fine * self.stride / self.side)  # what does not fill a cell is not seen
        return [frame.repeat(length // len(frame), 1) if length % len(frame) == 0 else None for length in lengths]

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """A video's frames are resized so that their pooled tokens are as many as wanted."""
        if modality != "video":
            return super().encode_smaller(run, modality, given, reducer)
        videos, frames = given["pixel_values_videos"].shape[:2]
        grids = ((self.side // self.stride,) * 2,) * frames
        coarse = reducer.coarsen(grids, frames * math.prod(grids[0]), 0)
        if coarse == grids:
            return run(), [None] * videos
        rows, columns = self.stride * coarse[0][0], self.stride * coarse[0][1]
        resampler = self.core.vision_resampler
        with replaced(resampler, "forward", lambda states: _pooled(resampler.pool, states, rows, columns)):
            output = self.run_smaller(run, "pixel_values_videos", given, (rows, columns))
        merge = join([into_cells(grids[0], coarse[0])] * frames)
        cuts = [cells_cut(tokens, merge) for tokens in output.pooler_output]
        output.pooler_output = torch.stack([first_rows(tokens, merge.arriving) for tokens in output.pooler_output])
        return output, cuts

    @property
    def stride(self) -> int:
        """Patches along a side of what becomes one token of a video."""
        return int(self.model.config.spatial_pool_stride)

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        side = config.vision_config.image_size // config.vision_config.patch_size
        frames, rest = divmod(size, (side // config.spatial_pool_stride) ** 2)
        return frames if rest == 0 else 0

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """Frames are pooled before the projector; a convolution counts with it."""
        pictures = pictures or tuple(cls.pictures_of(config, size) for size in sizes)
        tower, projector = llava_cost(config, sum(pictures))
        each = picture_tokens(config)
        for size, count in zip(sizes, pictures, strict=True):
            if count and cls.frames_of(config, size) == count:
                projector -= llava_cost(config, count)[1] // (count * each) * (count * each - size)
                if config.spatial_pool_mode == "conv":
                    width = config.vision_config.hidden_size
                    out = getattr(config, "spatial_pool_out_channels", width)
                    projector += linear(size, config.spatial_pool_stride**2 * width, out)
        return tower, projector

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        """Not known: frames are pooled before the projector."""
        return None


def _pooled(pool: nn.Module, frames: Tensor, rows: int, columns: int) -> Tensor:
    """Frames of so many rows and columns of patches, pooled: (frames, patches, width) -> (frames, tokens, width)."""
    maps = frames.view(len(frames), rows, columns, -1).permute(0, 3, 1, 2)
    pooled: Tensor = pool(maps)
    return pooled.flatten(2).transpose(1, 2)


FAMILY = LlavaNextVideo
