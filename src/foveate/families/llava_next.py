"""LLaVA-NeXT (1.6), LLaVA-NeXT-Video and LLaVA-OneVision: a base view, then a map of tiles; frames are pooled.

The map is unpadded, and has a newline after every row.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells, join
from foveate.core.patching import Patcher
from foveate.core.signals import TowerSignal
from foveate.families.anyres import Views, filled_part, tiles_of
from foveate.families.base import Family
from foveate.families.llava import side_of
from foveate.families.newlines import reduce_apart
from foveate.families.placing import lengths_of, replace_images
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, coarser_grids
from foveate.families.vision import picture_sizes


class AnyResolution(Views):
    """Shared by LLaVA-NeXT and its descendants. They differ in `pack_views` and `pool_to`."""

    def pool_to(self, patches: Patcher, cells: Grid) -> Grid:
        """Make the model pool frames to these rows and columns of tokens, until the patcher restores it.

        Returns:
            The rows and columns of the frames that it then gets, in patches.
        """
        raise NotImplementedError

    def pack_views(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        """Pack scores, keys or tower features as the model packs the features of an image's views or a video's frames.

        Without newlines: (views, patches, any) each -> (tokens, any) each.
        """
        raise NotImplementedError

    def tower_pixels(self, modality: str, inputs: Inputs, reducer: ImageReducer) -> Sequence[Tensor]:
        pixels = super().tower_pixels(modality, inputs, reducer)
        views = self.views_of(self.model.config, modality, inputs)
        if len(pixels) == len(views):  # an image's views may be followed by padding
            return [of_image[:count] for of_image, count in zip(pixels, views, strict=True)]
        return torch.split(torch.cat([*pixels]), list(views))

    def tokens_left(self, modality: str, stays: Sequence[Tensor], inputs: Inputs) -> Tensor:
        """As in the base class: tokens with a part of a patch that stays, after patches are packed like features."""
        if modality == "image":  # copy to the host
            inputs = {**inputs, "image_sizes": picture_sizes(inputs["image_sizes"])}
        views = [of_image.float().flatten(1)[..., None] for of_image in stays]
        return torch.cat(self.pack_views(modality, views, inputs))[:, 0] > 0

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """Behind the projector, on the packed tokens. Scores and keys of all views are packed like the features.

        The newline that ends a single view or a video stays, in last place. Newlines of tile rows are dropped.
        """
        if modality == "image":  # copy before work is queued, so that the host does not wait
            inputs = {**inputs, "image_sizes": picture_sizes(inputs["image_sizes"])}
        projected: list[Tensor] = []  # the projector's input: (views, patches, width of the tower)
        taps = self.tower_parts(modality, run, inputs).taps(reducer.reads)
        with Patcher() as patches:
            patches.hook(self.core.multi_modal_projector, "before", lambda _, states: projected.extend(states))
            output = taps.run(run)
        config = self.model.config
        views = self.views_of(config, modality, inputs)

        @functools.cache
        def stats(signal: TowerSignal) -> list[Tensor]:
            patches = torch.stack(taps.read(signal)[: sum(views)])  # (views, patches, numbers)
            of_images = torch.split(patches, list(views))
            return self.pack_views(modality, of_images, inputs)

        @functools.cache
        def tower_features() -> list[Tensor]:
            return self.pack_views(modality, torch.split(projected[0], list(views)), inputs)

        def more(index: int) -> dict[str, Any]:
            # A video's frames may be pooled before the projector, so they provide no tower features.
            return {"made": lambda: tower_features()[index]} if modality == "image" else {}

        images = output.pooler_output
        pictures = self.pictures(config, modality, inputs, lengths_of(images))
        cuts = reduce_apart(images, pictures, reducer, stats, more)
        self.place(output, images, cuts)
        return output, cuts

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The tower interpolates its position embeddings; smaller views are packed as usual.

        Every view of a call gets the same size. Newlines stay, even those of tile rows. A video's frames are resized so
        that their pooled tokens have the requested number.
        """
        if modality == "video":
            return self._encode_smaller_frames(run, inputs, reducer)
        grid = (self.side, self.side)
        (cells,) = reducer.coarsen((grid,), self.side**2 + 1, 1)
        if cells == grid:
            output = run()
            return output, [None] * len(output.pooler_output)
        merged: list[Cut] = []

        def pack(
            original: Any, image_features: Any, image_sizes: Any, *_: Any, image_newline: Tensor, **__: Any
        ) -> tuple[list[Tensor], None]:
            """Replace the core's own packing."""
            images = zip(image_features, picture_sizes(image_sizes), strict=True)
            packed = [self._pack(views, cells, size, image_newline) for views, size in images]
            merged.extend(cut for _, cut in packed)
            return [rows for rows, _ in packed], None

        with Patcher() as patches:
            patches.wrap(self.core, "pack_image_features", pack)
            output = self.run_smaller(run, inputs, cells)
        return output, replace_images(output, merged)

    def _pack(self, views: Tensor, cells: Grid, size: tuple[int, int], newline: Tensor) -> tuple[Tensor, Cut]:
        """An image's rows, and a cut that sends its usual tokens into them.

        Args:
            views: (views, patches, width), the base view first.
            cells: Rows and columns of a view's patches.
            size: Height and width of the image.
            newline: (width,).
        """
        base_view, config, side = views[0], self.model.config, self.side
        base = into_cells((side, side), cells)
        mosaic = tiles_of(config, size)
        usual = fine = (1, 0)  # a single view ends in one newline
        if len(views) > 1:
            usual = filled_part(side * mosaic[0], side * mosaic[1], *size)
            fine = self.shrunk(config, *usual)
        if not math.prod(fine):  # also for an image so long that at most the newlines of its map are left
            count = fine[0]
            rows = torch.cat((base_view, newline.expand(count, -1).to(base_view)))
            return rows, join([base, into_cells((count, 1), (count, 1))])
        tiles = views[1:].view(*mosaic, *cells, -1)  # (down, across, rows, columns, width)
        tiles = tiles.permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)  # one map: (width, rows, columns)
        tiles = _unpad(tiles, size)
        # OneVision shrinks large maps. Shrink this map by the same factor.
        sides = zip(usual, fine, tiles.shape[1:], strict=True)
        tall, wide = (max(1, min(few, int(length * (few / most)))) for most, few, length in sides)
        if (tall, wide) != tiles.shape[1:]:
            tiles = interpolate(tiles[None], (tall, wide), mode="bilinear")[0]
        newlines = newline[:, None, None].expand(-1, tall, 1).to(tiles)  # after each row
        rows = torch.cat((tiles, newlines), dim=-1).flatten(1, 2).T
        return torch.cat((base_view, rows)), join([base, into_cells(fine, (tall, wide), newlines=True)])

    def _encode_smaller_frames(self, run: Run, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        videos, frames = inputs["pixel_values_videos"].shape[:2]
        side, _ = self.frame_side(self.model.config)
        coarse, cuts = coarser_grids(reducer, [((side, side),) * frames] * videos, self.film_newlines)
        if cuts[0] is None:
            return run(), cuts
        with Patcher() as patches:
            output = self.run_smaller(run, inputs, self.pool_to(patches, coarse[0][0]))
        return output, replace_images(output, cuts)


class LlavaNext(AnyResolution):
    """The structure of `LlavaNextForConditionalGeneration`, with a Vicuna, Mistral or other decoder."""

    model_type: ClassVar[str] = "llava_next"
    title: ClassVar[str] = "LLaVA-NeXT (1.6)"

    def pack_views(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        strategy = self.model.config.vision_feature_select_strategy
        images, _ = self.core.pack_image_features(views, inputs["image_sizes"], strategy, image_newline=None)
        return list(images)


class LlavaNextVideo(LlavaNext):
    """The structure of `LlavaNextVideoForConditionalGeneration`: frames are pooled by 2 x 2, without newlines."""

    model_type: ClassVar[str] = "llava_next_video"
    title: ClassVar[str] = "LLaVA-NeXT-Video"
    videos: ClassVar[bool] = True
    projects_frames: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # before, frames come one by one

    def pack_views(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        """As in the base class. Scores are averaged even if features pass through a convolution."""
        if modality != "video":
            return super().pack_views(modality, views, inputs)
        pool = self.core.vision_resampler.pool
        if isinstance(pool, nn.Conv2d):
            pool = nn.AvgPool2d(self.model.config.spatial_pool_stride)
        grid = (self.side, self.side)
        return [pool_frames(pool, grid, frames).flatten(0, 1) for frames in views]

    @classmethod
    def frame_side(cls, config: Any) -> tuple[int, float]:
        """As in the base class. Patches at the edge that do not fill a cell are not covered."""
        side, stride = side_of(config), config.spatial_pool_stride
        cells = side // stride
        return cells, cells * stride / side

    def pool_to(self, patches: Patcher, cells: Grid) -> Grid:
        resampler, stride = self.core.vision_resampler, self.model.config.spatial_pool_stride
        grid = (stride * cells[0], stride * cells[1])
        patches.wrap(resampler, "forward", lambda _, states: pool_frames(resampler.pool, grid, states))
        return grid


class LlavaOnevision(AnyResolution):
    """The structure of `LlavaOnevisionForConditionalGeneration`: a video ends with a newline."""

    model_type: ClassVar[str] = "llava_onevision"
    title: ClassVar[str] = "LLaVA-OneVision"
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std
    videos: ClassVar[bool] = True
    projects_frames: ClassVar[bool] = True
    film_newlines: ClassVar[int] = 1

    @classmethod
    def shrunk(cls, config: Any, rows: int, columns: int) -> Grid:
        """As in the base class. A map of more than about nine tiles (anyres_max_9) is shrunk to that many tokens."""
        tiles = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        side = side_of(config)
        ratio = math.sqrt(rows * columns / (tiles * side**2))
        if ratio <= 1.1:
            return rows, columns
        return int(rows // ratio), int(columns // ratio)

    def pack_views(self, modality: str, views: Sequence[Tensor], inputs: Inputs) -> list[Tensor]:
        if modality == "video":
            return [self.core.apply_pooling(frames).flatten(0, 1) for frames in views]
        sizes, ratio = inputs["image_sizes"], self.model.config.vision_aspect_ratio
        images, _ = self.core.pack_image_features(views, sizes, image_newline=None, vision_aspect_ratio=ratio)
        return list(images)

    @classmethod
    def frame_side(cls, config: Any) -> tuple[int, float]:
        return math.ceil(side_of(config) / 2), 1

    def pool_to(self, patches: Patcher, cells: Grid) -> Grid:
        grid = (min(self.side, 2 * cells[0]), min(self.side, 2 * cells[1]))
        pool = partial(interpolate, size=cells, mode="bilinear")
        patches.wrap(self.core, "apply_pooling", lambda _, states: pool_frames(pool, grid, states))
        return grid

    @classmethod
    def views_of(cls, config: Any, modality: str, inputs: Inputs) -> tuple[int, ...]:
        crops = super().views_of(config, modality, inputs)
        in_sample = inputs.get("batch_num_images")
        if modality == "video" or in_sample is None:
            return crops
        counts, left = [], iter(crops)
        for images in map(int, in_sample):
            of_sample = list(itertools.islice(left, images))
            # If a sample has several images, only their base views are used.
            counts.extend(of_sample if images == 1 else [1] * images)
        return tuple(counts)


# -- maps of tiles, and frames that are pooled ----------------------------------------------------------------------


def pool_frames(pool: Callable[[Tensor], Tensor], grid: Grid, frames: Tensor) -> Tensor:
    """Pool frames, each a grid of patches: (frames, patches, width) -> (frames, tokens, width)."""
    maps = frames.view(len(frames), *grid, -1)
    maps = maps.permute(0, 3, 1, 2)  # (frames, width, rows, columns)
    return pool(maps).flatten(2).transpose(1, 2)


def _unpad(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """The part of a map, (width, rows, columns), that the image fills: at least one row and column."""
    _, tall, wide = tiles.shape
    rows, columns = (max(1, side) for side in filled_part(tall, wide, *size))
    top = (tall - rows) // 2
    left = (wide - columns) // 2
    return tiles[:, top : top + rows, left : left + columns]
