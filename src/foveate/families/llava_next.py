"""LLaVA-NeXT (1.6), LLaVA-NeXT-Video and LLaVA-OneVision: a base view, then tiles put together and unpadded, with a
newline after every row; a video's frames are pooled."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.core.grid import Grid
from foveate.families.anyres import AnyResolution, pooled_frames
from foveate.families.base import Family
from foveate.families.llava import side_of
from foveate.families.tower import Inputs


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
        return [pooled_frames(pool, grid, frames).flatten(0, 1) for frames in views]

    @classmethod
    def frame_side(cls, config: Any) -> tuple[int, float]:
        """Patches at the edge that fill no cell are not seen."""
        side, stride = side_of(config), config.spatial_pool_stride
        cells = side // stride
        return cells, cells * stride / side

    def pooling(self, rows: int, columns: int) -> tuple[Any, str, Callable[[Tensor], Tensor], Grid]:
        resampler, stride = self.core.vision_resampler, self.model.config.spatial_pool_stride
        return resampler, "forward", resampler.pool, (stride * rows, stride * columns)

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        cells = side_of(config) // config.spatial_pool_stride
        frames, rest = divmod(size, cells**2)
        return 0 if rest else frames


class LlavaOnevision(AnyResolution):
    """Where things are inside `LlavaOnevisionForConditionalGeneration`: a video ends with a newline."""

    model_type: ClassVar[str] = "llava_onevision"
    title: ClassVar[str] = "LLaVA-OneVision"
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std
    videos: ClassVar[bool] = True
    film_newlines: ClassVar[int] = 1

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
    def frame_side(cls, config: Any) -> tuple[int, float]:
        return math.ceil(side_of(config) / 2), 1

    def pooling(self, rows: int, columns: int) -> tuple[Any, str, Callable[[Tensor], Tensor], Grid]:
        pool = partial(interpolate, size=(rows, columns), mode="bilinear")
        return self.core, "apply_pooling", pool, (min(self.side, 2 * rows), min(self.side, 2 * columns))

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
