"""LLaVA-NeXT (1.6), LLaVA-NeXT-Video and LLaVA-OneVision: a base view, then tiles put together and unpadded, with a
newline after every row; a video's frames are pooled."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.core.grid import Grid, into_cells, join
from foveate.core.patching import Patcher
from foveate.families.anyres import NOWHERE, AnyResolution
from foveate.families.base import Family
from foveate.families.llava import side_of
from foveate.families.placing import replace_images
from foveate.families.tower import Encoded, Inputs, Reducer, Run
from foveate.families.vision import grid_boxes


class LlavaNext(AnyResolution):
    """Where things are inside `LlavaNextForConditionalGeneration`, with a Vicuna, Mistral or other decoder."""

    model_type: ClassVar[str] = "llava_next"
    title: ClassVar[str] = "LLaVA-NeXT (1.6)"

    def packed(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        strategy = self.model.config.vision_feature_select_strategy
        images, _ = self.core.pack_image_features(views, inputs["image_sizes"], strategy, image_newline=None)
        return list(images)


class LlavaNextVideo(LlavaNext):
    """Where things are inside `LlavaNextVideoForConditionalGeneration`: a video's frames are pooled by 2 x 2, one
    behind the other, no newline."""

    model_type: ClassVar[str] = "llava_next_video"
    title: ClassVar[str] = "LLaVA-NeXT-Video"
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # frames come one by one before

    def packed(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        """Scores are averaged also where features pass through a convolution."""
        if modality != "video":
            return super().packed(modality, views, inputs)
        pool = self.core.vision_resampler.pool
        if isinstance(pool, nn.Conv2d):
            pool = nn.AvgPool2d(self.model.config.spatial_pool_stride)
        grid = (self.side, self.side)
        return [_pooled(pool, grid, frames).flatten(0, 1) for frames in views]

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        if modality != "video":
            return super().boxes(config, modality, inputs, lengths)
        side, stride = side_of(config), config.spatial_pool_stride
        cells = side // stride
        seen = cells * stride / side  # patches at the edge that fill no cell are not
        frame = grid_boxes(cells, cells) * seen
        return [_repeated(frame, length, NOWHERE[:0]) for length in lengths]

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """A video's frames are resized so that their pooled tokens are as many as wanted."""
        if modality != "video":
            return super().encode_smaller(run, modality, inputs, reducer)
        resampler, stride = self.core.vision_resampler, self.model.config.spatial_pool_stride

        def pooling(rows: int, columns: int) -> Pooling:
            return resampler.pool, (stride * rows, stride * columns)

        frames = SmallerFrames(self, self.side // stride, pooling, resampler, "forward")
        return frames.encode(run, inputs, reducer)

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        cells = side_of(config) // config.spatial_pool_stride
        frames, rest = divmod(size, cells**2)
        return 0 if rest else frames


def _repeated(frame: Tensor, length: int, end: Tensor) -> Tensor | None:
    """Boxes of frames one after the other, `length` tokens in all, and of what ends them; None if these are no whole
    frames."""
    frames, rest = divmod(length, len(frame))
    if rest:
        return None
    return torch.cat((frame.repeat(frames, 1), end))


def _pooled(pool: Callable[[Tensor], Tensor], grid: Grid, frames: Tensor) -> Tensor:
    """Frames of a grid of patches, pooled: (frames, patches, width) -> (frames, tokens, width)."""
    maps = frames.view(len(frames), *grid, -1)
    maps = maps.permute(0, 3, 1, 2)  # (frames, width, rows, columns)
    return pool(maps).flatten(2).transpose(1, 2)


Pooling = tuple[Callable[[Tensor], Tensor], Grid]
"""What pools the maps of a video's frames, and their rows and columns before, in patches."""


@dataclass(frozen=True, slots=True)
class SmallerFrames:
    """Runs a tower on a video's frames resized, so that their pooled tokens are as many as wanted.

    Attributes:
        family: Of the model.
        side: Tokens along a side of a frame of the usual size.
        pooling: For frames of so many rows and columns of tokens.
        owner, name: The function of the model that pools.
        newlines: Behind all frames.
    """

    family: AnyResolution
    side: int
    pooling: Callable[[int, int], Pooling]
    owner: Any
    name: str
    newlines: int = 0

    def encode(self, run: Run, inputs: Inputs, reducer: Reducer) -> Encoded:
        """See `Family.encode_smaller`."""
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        grids = ((self.side, self.side),) * frames
        coarse = reducer.coarsen(grids, frames * self.side**2 + self.newlines, self.newlines)
        if coarse == grids:
            return run(), [None] * videos
        pool, patches_of = self.pooling(*coarse[0])
        with Patcher() as patches:
            patches.wrap(self.owner, self.name, lambda _, states: _pooled(pool, patches_of, states))
            output = self.family.run_smaller(run, "pixel_values_videos", inputs, patches_of)
        newlines = [into_cells((1, 1), (1, 1))] * self.newlines
        merged = join([into_cells(grids[0], coarse[0])] * frames + newlines)
        return output, replace_images(output, [merged] * videos)


class LlavaOnevision(AnyResolution):
    """Where things are inside `LlavaOnevisionForConditionalGeneration`: a video ends with a newline."""

    model_type: ClassVar[str] = "llava_onevision"
    title: ClassVar[str] = "LLaVA-OneVision"
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std
    videos: ClassVar[bool] = True

    @classmethod
    def shrunk(cls, config: Any, rows: int, columns: int) -> Grid:
        """A map of more than about nine tiles' worth of tokens (anyres_max_9) is brought down to them."""
        tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        side = side_of(config)
        ratio = math.sqrt(rows * columns / (tiles * side**2))
        if ratio <= 1.1:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)

    def packed(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        if modality == "video":
            return [self.core.apply_pooling(frames).flatten(0, 1) for frames in views]
        sizes, ratio = inputs["image_sizes"], self.model.config.vision_aspect_ratio
        images, _ = self.core.pack_image_features(views, sizes, image_newline=None, vision_aspect_ratio=ratio)
        return list(images)

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        if modality != "video":
            return super().boxes(config, modality, inputs, lengths)
        cells = math.ceil(side_of(config) / 2)
        frame = grid_boxes(cells, cells)
        return [_repeated(frame, length - 1, NOWHERE) for length in lengths]

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """A video's frames are resized so that their pooled tokens are as many as wanted."""
        if modality != "video":
            return super().encode_smaller(run, modality, inputs, reducer)

        def pooling(rows: int, columns: int) -> Pooling:
            pool = partial(interpolate, size=(rows, columns), mode="bilinear")
            return pool, (min(self.side, 2 * rows), min(self.side, 2 * columns))

        frames = SmallerFrames(self, math.ceil(self.side / 2), pooling, self.core, "apply_pooling", newlines=1)
        return frames.encode(run, inputs, reducer)

    @classmethod
    def tower_images(cls, config: Any, modality: str, inputs: Inputs) -> tuple[int, ...] | None:
        crops = super().tower_images(config, modality, inputs)
        in_sample = inputs.get("batch_num_images")
        if modality == "video" or in_sample is None or crops is None:
            return crops
        counts, left = [], iter(crops)
        for images in map(int, in_sample):
            of_sample = list(itertools.islice(left, images))
            # Of several images in a sample only the base views are seen.
            counts.extend(of_sample if images == 1 else [1] * images)
        return tuple(counts)

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        """With the closing newline or without."""
        cells = math.ceil(side_of(config) / 2)
        frames, rest = divmod(size, cells**2)
        if rest not in (0, 1):
            return 0
        return frames


FAMILIES = (LlavaNext, LlavaNextVideo, LlavaOnevision)
