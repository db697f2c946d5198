"""Pictures of any resolution, as several LLaVAs take them: a base view, then tiles put together to a map, unpadded, a
newline behind every row."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells, join
from foveate.errors import SettingError
from foveate.families._encode import (
    Reducer,
    TowerReader,
    cells_cut,
    encoder_layers,
    feature_layers,
    first_rows,
    place_rows,
    reduce_apart,
    replaced,
    scoring_layers,
    smaller,
    stays_whole,
)
from foveate.families._tap import tapped
from foveate.families._towers import drops_cls, llava_bytes, llava_cost
from foveate.families.base import Family, grid_boxes, picture_sizes

__all__ = ["NOWHERE", "AnyResolution", "tiles_of"]

NOWHERE = torch.full((1, 4), float("nan"))


class AnyResolution(Family):
    """What LLaVA-NeXT and its descendants share; they differ in `packed`, in `shrunk` and in videos."""

    shares_prefix: ClassVar[bool] = True

    @property
    def side(self) -> int:
        """Patches along a side of a view."""
        return _side(self.model.config)

    @classmethod
    def shrunk(cls, config: Any, rows: int, columns: int) -> Grid:
        """What the model makes of an unpadded map of so many rows and columns: by default nothing."""
        return rows, columns

    def packed(self, modality: str, views: Sequence[Tensor], given: Mapping[str, Any]) -> list[Tensor]:
        """What the model does to the views of each image (or the frames of each video), done to other numbers than
        features, without newlines: (views, patches, any) each -> (tokens, any) each."""
        raise NotImplementedError

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        return [
            self._image(length, size) for length, size in zip(lengths, picture_sizes(given["image_sizes"]), strict=True)
        ]

    def _image(self, length: int, size: tuple[int, int]) -> Tensor | None:
        """The base view, then the tile map, each of its rows closed by a newline; or a base view and one newline."""
        base = grid_boxes(self.side, self.side)
        if length == len(base) + 1:
            return torch.cat((base, NOWHERE))
        tall, wide = tiles_of(self.model.config, size)
        rows, columns = self.shrunk(self.model.config, *_unpadded(tall * self.side, wide * self.side, *size))
        if length != len(base) + rows * (columns + 1):
            return None
        cells = torch.cat((grid_boxes(rows, columns).view(rows, columns, 4), NOWHERE.expand(rows, 1, 4)), dim=1)
        return torch.cat((base, cells.flatten(0, 1)))

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return None if config is None else drops_cls(config)

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector, on the packed tokens; scores and keys of all views are packed as the features are.

        Newlines: the one that ends a single view or a video stays, in last place; those of tile rows leave.
        """
        layers, config = encoder_layers(self.core.vision_tower), self.model.config
        if modality == "image":  # while nothing is under way to wait for
            given = {**given, "image_sizes": picture_sizes(given["image_sizes"])}
        wanted = scoring_layers(feature_layers(config, len(layers)), len(layers))
        seen: dict[int, tuple[Tensor, Tensor, float]] = {}
        with ExitStack() as stack:
            for at in dict.fromkeys(wanted):
                attention: Any = layers[at].self_attn
                stack.enter_context(tapped(attention, lambda q, k, s, at=at: seen.update({at: (q, k, s)})))  # type: ignore[misc]
            output = run()
        pictures = self.tower_images(config, modality, given)
        assert pictures is not None
        cls = drops_cls(config)
        readers = [
            TowerReader(cls, [(q[view], k[view], s) for q, k, s in (seen[at] for at in wanted)])
            for view in range(sum(pictures))
        ]

        @functools.cache
        def read(layer: int) -> list[Tensor]:
            stats = [torch.cat((one.scores(layer)[:, None], one.keys(layer)), dim=-1) for one in readers]
            return self.packed(modality, torch.split(torch.stack(stats), list(pictures)), given)

        features = list(output.pooler_output)
        places = self.boxes(modality, given, [len(one) for one in features])
        each = [lambda layer, index=index: read(layer)[index] for index in range(len(features))]
        cuts = reduce_apart(features, places, reducer, each)
        features = [one if stays_whole(cut) else place_rows(one, cut) for one, cut in zip(features, cuts, strict=True)]
        together = isinstance(output.pooler_output, Tensor)
        output.pooler_output = torch.stack(features) if together else features
        return output, cuts

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The tower interpolates its position embeddings; the smaller views are packed as the model packs its own.

        Every view of a call gets the same size. Newlines stay, also those of tile rows.
        """
        grid = (self.side, self.side)
        (cells,) = reducer.coarsen((grid,), self.side**2 + 1, 1)
        if cells == grid:
            output = run()
            return output, [None] * len(output.pooler_output)
        merges: list[Cut] = []

        def pack(image_features: Any, image_sizes: Any, *_: Any, image_newline: Tensor, **__: Any) -> Any:
            packed = []
            for views, size in zip(image_features, picture_sizes(image_sizes), strict=True):
                rows, merge = self._pack_smaller(cells, views, size, image_newline)
                packed.append(rows)
                merges.append(merge)
            return packed, None

        with replaced(self.core, "pack_image_features", pack):
            output = self.run_smaller(run, "pixel_values", given, cells)
        pairs = list(zip(output.pooler_output, merges, strict=True))
        output.pooler_output = [first_rows(rows, merge.arriving) for rows, merge in pairs]
        return output, [cells_cut(rows, merge) for rows, merge in pairs]

    def run_smaller(self, run: Callable[..., Any], name: str, given: Mapping[str, Any], cells: Grid) -> Any:
        """Run with pictures of so many rows and columns of patches."""
        pixels, patch = given[name], self.model.config.vision_config.patch_size
        resized = smaller(pixels.flatten(0, -4), cells[0] * patch, cells[1] * patch)
        resized = resized.view(*pixels.shape[:-2], *resized.shape[-2:])
        return run(**{name: resized, "interpolate_pos_encoding": True})

    def _pack_smaller(self, cells: Grid, views: Tensor, size: tuple[int, int], newline: Tensor) -> tuple[Tensor, Cut]:
        """`pack_image_features` of one image with views of `cells` tokens, and what the usual tokens went into."""
        side = self.side
        base = into_cells((side, side), cells)
        if len(views) == 1:
            rows = torch.cat((views[0], newline[None].to(views[0])))
            return rows, join([base, into_cells((1, 1), (1, 1))])
        tall, wide = tiles_of(self.model.config, size)
        whole = _unpadded(side * tall, side * wide, *size)
        fine = self.shrunk(self.model.config, *whole)
        if not math.prod(fine):  # so long a picture that of its map at most the newlines are left
            rows = torch.cat((views[0], newline.expand(fine[0], -1).to(views[0])))
            return rows, join([base, into_cells((fine[0], 1), (fine[0], 1))])
        tiles = views[1:].view(tall, wide, *cells, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
        tiles = _unpad(tiles, size)
        coarse = tuple(
            max(1, min(few, int(length * (few / most))))
            for few, most, length in zip(fine, whole, tiles.shape[1:], strict=True)
        )
        if coarse != tiles.shape[1:]:
            tiles = torch.nn.functional.interpolate(tiles[None], coarse, mode="bilinear")[0]
        newlines = newline[:, None, None].expand(-1, coarse[0], 1).to(tiles)
        tiles = torch.cat((tiles, newlines), dim=-1).flatten(1, 2).T
        merge = join([base, into_cells(fine, (coarse[0], coarse[1]), newlines=True)])
        return torch.cat((views[0], tiles)), merge

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        if modality == "video":
            videos, frames = given["pixel_values_videos"].shape[:2]
            return (int(frames),) * int(videos)
        return tuple(1 + math.prod(tiles_of(config, size)) for size in picture_sizes(given["image_sizes"]))

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        if pictures is None:
            pictures = tuple(cls.pictures_of(config, size) for size in sizes)
        return llava_cost(config, sum(pictures))

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        counts = pictures or tuple(cls.pictures_of(config, size) for size in sizes)
        frames = all(cls.frames_of(config, size) == count for size, count in zip(sizes, counts, strict=True))
        return llava_bytes(config, sum(sizes), sum(counts), itemsize, copies=1 if frames else 2)

    @classmethod
    def frames_of(cls, config: Any, size: int) -> int:
        """Frames of a video of `size` vision tokens; 0 if no video has so many."""
        return 0

    @classmethod
    def pictures_of(cls, config: Any, size: int) -> int:
        """Crops or frames the tower encoded to make `size` vision tokens, where the count leaves no doubt.

        Raises:
            SettingError: If several counts of pictures make as many tokens, or none.
        """
        if size == 0:
            return 0
        crop, side = config.vision_config.image_size, _side(config)
        found = {frames} if (frames := cls.frames_of(config, size)) else set()
        if size == side * side + 1:
            found.add(1)
        mosaics: list[Grid] = [(tall // crop, wide // crop) for tall, wide in config.image_grid_pinpoints]
        for tall, wide in mosaics:
            # Unpadding trims one side by an even count, never to where a smaller mosaic would have been chosen.
            flatter = max((t for t, w in mosaics if w == wide and t < tall), default=0)
            slimmer = max((w for t, w in mosaics if t == tall and w < wide), default=0)
            maps = [(rows, wide * side) for rows in range(tall * side, flatter * side - 1, -2)]
            maps += [(tall * side, columns) for columns in range(wide * side, slimmer * side - 1, -2)]
            shrunk = (cls.shrunk(config, rows, columns) for rows, columns in maps)
            if any(side * side + rows * (columns + 1) == size for rows, columns in shrunk):
                found.add(1 + tall * wide)
        if len(found) == 1:
            return found.pop()
        what = f"may come from {', '.join(map(str, sorted(found)))} pictures" if found else "fit no picture or video"
        raise SettingError(
            f"{size} vision tokens {what} of this model ({cls.model_type}): say with tower_images=… how many the tower "
            "encodes (of an image its base view and tiles, of a video its frames); Family.tower_images reads it off "
            "the inputs."
        )


def tiles_of(config: Any, size: tuple[int, int]) -> Grid:
    """Tiles down and across of a picture of this height and width."""
    # Here, as listing the families should not load it.
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    crop = config.vision_config.image_size
    return height // crop, width // crop


def _side(config: Any) -> int:
    return int(config.vision_config.image_size // config.vision_config.patch_size)


def _unpadded(rows: int, columns: int, height: int, width: int) -> Grid:
    """What is left of a map of so many rows and columns where the picture does not fill it."""
    if width / height > columns / rows:
        rows -= 2 * ((rows - int(round(height * columns / width, 7))) // 2)
    else:
        columns -= 2 * ((columns - int(round(width * rows / height, 7))) // 2)
    return rows, columns


def _unpad(tiles: Tensor, size: tuple[int, int]) -> Tensor:
    """What is left of a map, (width, rows, columns), where the picture does not fill it: one row or column at least."""
    rows, columns = (max(1, left) for left in _unpadded(tiles.shape[1], tiles.shape[2], *size))
    top, left = (tiles.shape[1] - rows) // 2, (tiles.shape[2] - columns) // 2
    return tiles[:, top : top + rows, left : left + columns]
