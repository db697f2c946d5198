"""LLaVA-OneVision: a base view, then unpadded tiles with a newline after every row; video frames pooled."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.errors import SettingError, UnsupportedError
from foveate.families._encode import Reducer, encoder_layers, feature_layer, place_rows, stays_whole
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
            cut = _reduce(one, stats, boxes, reducer)
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


def _reduce(features: Tensor, stats: Tensor, boxes: Tensor | None, reducer: Reducer) -> Any:
    """Reduce one image's tokens, its newlines apart; a newline in last place stays there."""
    if boxes is None:
        raise UnsupportedError("Where this image's tokens look is not known, so its newlines cannot be told apart.")
    newline = boxes.isnan().any(dim=-1).to(features.device)
    tokens, newlines = (~newline).nonzero()[:, 0], newline.nonzero()[:, 0]
    stays = newlines[:1] if len(newlines) == 1 else newlines[:0]  # of a single view or a video; tile rows' leave
    cut = reducer.reduce(
        features[tokens],
        None,
        lambda layer: stats[:, 0],
        lambda layer: stats[:, 1:],
        entered=len(features),
        reserved=len(stays),
    )
    if cut is None:
        return None
    if stays_whole(features[tokens], cut):
        every = torch.arange(len(features), device=features.device)
        return dataclasses.replace(cut, kept=every, sizes=(len(every),), notes=_spread(cut.notes, tokens, len(every)))
    kept = torch.where(cut.kept < 0, cut.kept, tokens[cut.kept.clamp(min=0)])
    rows = features[kept] if cut.rows is None else cut.rows
    assign = torch.full((len(features),), -1, device=features.device)
    if cut.assign is None:
        assign[kept] = torch.arange(len(kept), device=features.device)
    else:
        assign[tokens] = cut.assign
    assign[stays] = len(kept)
    count = len(kept) + len(stays)
    places = torch.arange(len(kept), device=features.device)
    return dataclasses.replace(
        cut,
        kept=torch.cat((kept, stays)),
        sizes=(count,),
        rows=torch.cat((rows, features[stays].to(rows.dtype))),
        assign=assign,
        notes=_spread(cut.notes, places, count),
    )


def _spread(notes: Mapping[str, Tensor], places: Tensor, count: int) -> dict[str, Tensor]:
    """Notes of some rows as notes of all; true, or one, for a newline."""
    spread = {}
    for name, note in notes.items():
        spread[name] = note.new_ones(count)
        spread[name][places] = note
    return spread


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
            maps.append(_shrunk(side, rows, columns))
    return maps


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
