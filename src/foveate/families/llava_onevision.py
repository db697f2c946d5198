"""LLaVA-OneVision: a base view, then unpadded tiles with a newline after every row; video frames pooled."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.core.grid import Grid, into_cells, join
from foveate.core.merge import Merge
from foveate.errors import SettingError
from foveate.families._encode import (
    Reducer,
    encoder_layers,
    feature_layer,
    first_rows,
    place_rows,
    reduce_apart,
    replaced,
    smaller,
    stays_whole,
)
from foveate.families._tap import tapped
from foveate.families._towers import llava_cost
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "LlavaOnevision"]

MAX_TILES = 9  # anyres_max_9: a larger map is shrunk to nine tiles' worth of tokens
NOWHERE = torch.full((1, 4), float("nan"))


class LlavaOnevision(Family):
    """Where things are inside `LlavaOnevisionForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava_onevision"

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        if modality == "video":
            pooled = math.ceil(side / 2)
            return [_frames(pooled, length) for length in lengths]
        sizes = given["image_sizes"]
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else sizes
        return [_image(side, length, height, width) for length, (height, width) in zip(lengths, sizes, strict=True)]

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector, on the packed tokens; scores and keys are pooled and packed as the features are.

        Newlines: the one that ends a single view or a video stays, in last place; those of tile rows leave.
        """
        tower, config = self.core.vision_tower, self.model.config
        layer = feature_layer(config, len(encoder_layers(tower)))
        attention: Any = encoder_layers(tower)[layer].self_attn
        seen: list[tuple[Tensor, Tensor, float]] = []
        with tapped(attention, lambda *states: seen.append(states)):
            output = run()
        ((queries, keys, scaling),) = seen
        scores = torch.stack([received_attention(q, k, scaling) for q, k in zip(queries, keys, strict=True)])
        read = torch.cat((scores[..., None], keys.float().mean(dim=1)), dim=-1)  # (views, patches, 1 + head size)
        pictures = self.tower_images(config, modality, given)
        assert pictures is not None
        features, cuts = list(output.pooler_output), []
        packed = self._pack(modality, torch.split(read, list(pictures)), given)
        places = self.boxes(modality, given, [len(one) for one in features])
        for index, (one, stats, boxes) in enumerate(zip(features, packed, places, strict=True)):
            cut = reduce_apart(one, boxes, reducer, stats)
            cuts.append(cut)
            if not stays_whole(features[index], cut):
                features[index] = place_rows(one, cut)
        output.pooler_output = features if modality == "image" else torch.stack(features)
        return output, cuts

    def _pack(self, modality: str, views: Sequence[Tensor], given: Mapping[str, Any]) -> list[Tensor]:
        """What the model does to the projected views of each image, done to other numbers, without newlines."""
        if modality == "video":
            return [self.core.apply_pooling(frames).flatten(0, 1) for frames in views]
        packed, _ = self.core.pack_image_features(views, given["image_sizes"], image_newline=None)
        return list(packed)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The tower interpolates its position embeddings; the smaller views are packed as the model packs its own.

        Every view of a call gets the same size. Newlines stay, also those of tile rows.
        """
        config, side = self.model.config, self._side
        name = "pixel_values" + ("_videos" if modality == "video" else "")
        pixels, patch = given[name], config.vision_config.patch_size
        fine = math.ceil(side / 2) if modality == "video" else side  # a frame's tokens are pooled
        frames = pixels.shape[1] if modality == "video" else 1
        grids = ((fine, fine),) * frames
        coarse = reducer.coarsen(grids, frames * fine**2 + 1, 1)
        if coarse == grids:
            output = run()
            return output, [None] * len(output.pooler_output)
        cells = coarse[0]
        merges: list[Merge] = []
        if modality == "video":
            views = min(side, 2 * cells[0]), min(side, 2 * cells[1])
            frame, newline = into_cells((fine, fine), cells), into_cells((1, 1), (1, 1))
            merges = [join([frame] * frames + [newline])] * len(pixels)
            packing = replaced(self.core, "apply_pooling", functools.partial(_pool, views, cells))
        else:
            views = cells
            pack = functools.partial(self._pack_smaller, cells, merges)
            packing = replaced(self.core, "pack_image_features", pack)
        resized = smaller(pixels.flatten(0, -4), views[0] * patch, views[1] * patch)
        resized = resized.view(*pixels.shape[:-2], *resized.shape[-2:])
        with packing:
            output = run(**{name: resized, "interpolate_pos_encoding": True})
        pairs = list(zip(output.pooler_output, merges, strict=True))
        cuts = [reducer.replace(rows, merge) for rows, merge in pairs]
        features = [first_rows(rows, len(merge.assign)) for rows, merge in pairs]
        output.pooler_output = features if modality == "image" else torch.stack(features)
        return output, cuts

    @property
    def _side(self) -> int:
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def _pack_smaller(
        self,
        cells: Grid,
        merges: list[Merge],
        image_features: Sequence[Tensor],
        image_sizes: Any,
        image_newline: Tensor,
        vision_aspect_ratio: str,
    ) -> tuple[list[Tensor], None]:
        """`pack_image_features` for views of `cells` tokens; appends to `merges` what the usual tokens went into."""
        from transformers.models.llava_onevision.modeling_llava_onevision import (
            get_anyres_image_grid_shape,
            unpad_image,
        )

        side, config, packed = self._side, self.model.config, []
        for views, size in zip(image_features, image_sizes, strict=True):
            base = into_cells((side, side), cells)
            if len(views) == 1:
                packed.append(torch.cat((views[0], image_newline[None].to(views[0]))))
                merges.append(join([base, into_cells((1, 1), (1, 1))]))
                continue
            tall, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, config.vision_config.image_size)
            whole = _unpadded(side * tall, side * wide, *map(int, size))
            rows, columns = fine = _shrunk(side, *whole)
            tiles = views[1:].view(tall, wide, *cells, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
            tiles = unpad_image(tiles, size)
            shrink = (rows / whole[0], columns / whole[1])
            coarse = tuple(
                max(1, min(most, int(length * share)))
                for most, length, share in zip(fine, tiles.shape[1:], shrink, strict=True)
            )
            if coarse != tiles.shape[1:]:
                tiles = torch.nn.functional.interpolate(tiles[None], coarse, mode="bilinear")[0]
            newlines = image_newline[:, None, None].expand(-1, coarse[0], 1).to(tiles)
            tiles = torch.cat((tiles, newlines), dim=-1).flatten(1, 2).T
            packed.append(torch.cat((views[0], tiles)))
            merges.append(join([base, into_cells(fine, (coarse[0], coarse[1]), newlines=True)]))
        return packed, None

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        # Here, as listing the families should not load a model's code.
        from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

        if modality == "video":
            videos, frames = given["pixel_values_videos"].shape[:2]
            return (int(frames),) * int(videos)
        crop, pins = config.vision_config.image_size, config.image_grid_pinpoints
        crops = (int(image_size_to_num_patches(size, pins, crop)) for size in given["image_sizes"])
        in_sample = given.get("batch_num_images")  # of several images in a sample only the base views are seen
        if in_sample is None:
            return tuple(crops)
        alone = [int(count) == 1 for count in in_sample for _ in range(int(count))]
        return tuple(count if one else 1 for count, one in zip(crops, alone, strict=True))

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        if pictures is None:
            pictures = tuple(_pictures(config, size) for size in sizes)
        return llava_cost(config, sum(pictures))


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
            maps.append(_shrunk(side, *_unpadded(tall * side, wide * side, height, width)))
    return maps


def _unpadded(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """What is left of a map of so many rows and columns where the picture does not fill it."""
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows, columns


def _pool(views: Grid, cells: Grid, frames: Tensor) -> Tensor:
    """`apply_pooling` for frames of other sizes: (frames, tokens of a view, width) -> (frames, cells, width)."""
    maps = frames.view(len(frames), *views, -1).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.interpolate(maps, cells, mode="bilinear")
    return pooled.flatten(2).transpose(1, 2)


def _shrunk(side: int, rows: int, columns: int) -> tuple[int, int]:
    """A map of so many rows and columns, brought down to about nine tiles' worth of tokens if it has more."""
    ratio = math.sqrt(rows * columns / (MAX_TILES * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > 1.1 else (rows, columns)


def _pictures(config: Any, size: int) -> int:
    """Crops or frames the tower encoded to make `size` vision tokens, where the count leaves no doubt.

    Raises:
        SettingError: If several counts of pictures make as many tokens, or none.
    """
    if size == 0:
        return 0
    crop, side = config.vision_config.image_size, config.vision_config.image_size // config.vision_config.patch_size
    frames, rest = divmod(size, math.ceil(side / 2) ** 2)
    found: set[int] = {frames} if frames and rest in (0, 1) else set()  # with the closing newline or without
    if size == side * side + 1:
        found.add(1)
    mosaics: list[tuple[int, int]] = [(tall // crop, wide // crop) for tall, wide in config.image_grid_pinpoints]
    for tall, wide in mosaics:
        # Unpadding trims one side by an even count, never to where a smaller mosaic would have been chosen.
        flatter = max((t for t, w in mosaics if w == wide and t < tall), default=0)
        slimmer = max((w for t, w in mosaics if t == tall and w < wide), default=0)
        maps = [(rows, wide * side) for rows in range(tall * side, flatter * side - 1, -2)]
        maps += [(tall * side, columns) for columns in range(wide * side, slimmer * side - 1, -2)]
        shrunk = (_shrunk(side, rows, columns) for rows, columns in maps)
        if any(side * side + rows * (columns + 1) == size for rows, columns in shrunk):
            found.add(1 + tall * wide)
    if len(found) == 1:
        return found.pop()
    what = f"may come from {', '.join(map(str, sorted(found)))} pictures" if found else "fit no picture or video"
    raise SettingError(
        f"{size} vision tokens {what} of a LLaVA-OneVision: say with tower_images=… how many the tower encodes "
        "(of an image its base view and tiles, of a video its frames); Family.tower_images reads it off the inputs."
    )


FAMILY = LlavaOnevision
