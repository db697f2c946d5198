"""What families share that cut a picture into square tiles, and end with a tile that shows the whole of it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.flops import linear, vit_block
from foveate.core.grid import Grid, into_cells, join
from foveate.errors import SettingError
from foveate.families._encode import Reducer, TowerReader, cells_cut, first_rows, images_of, smaller
from foveate.families._tap import tapped
from foveate.families.base import Family, grid_boxes

__all__ = ["Tiled", "blocks", "mosaic", "runs"]

THUMBNAIL = 32  # pixels of a side that tell which mosaic the tiles of a picture make


class Tiled(Family):
    """A family whose tower sees tiles, and whose projector makes one token of a block of patches.

    An image with all of its tiles is one item. Tiles carry no place: which mosaic they make is told by the picture
    of the whole that comes last, as the mosaic that looks most like it.

    Attributes:
        has_cls: Whether the tower has a CLS.
    """

    tiled: ClassVar[bool] = True
    has_cls: ClassVar[bool] = False
    shares_prefix: ClassVar[bool] = True

    @classmethod
    def side(cls, config: Any) -> int:
        """Tokens of a tile's side."""
        raise NotImplementedError

    @classmethod
    def block(cls, config: Any) -> int:
        """Patches of a token's side."""
        raise NotImplementedError

    @classmethod
    def widths(cls, config: Any) -> tuple[int, ...]:
        """Widths of the projector's linear layers, the first that of a block of patches."""
        raise NotImplementedError

    def attentions(self) -> list[Any]:
        """The attention modules of the tower's scoring layers (see `scoring_layers`)."""
        raise NotImplementedError

    def project(self, pixels: Tensor) -> tuple[Any, Tensor]:
        """Encode tiles of another size: the tower's output, and features (tiles, tokens, width) behind the projector.

        Args:
            pixels: (tiles, channels, rows, columns).
        """
        raise NotImplementedError

    def tiles(self, given: Mapping[str, Any]) -> Tensor:
        """The pixels of all tiles of a call, (tiles, channels, rows, columns), in prompt order and without padding."""
        pixels: Tensor = given["pixel_values"]
        return pixels

    def form(self, features: Tensor, given: Mapping[str, Any]) -> Any:
        """Features of all tiles, (tiles, tokens, width), in the form the model makes them."""
        return features

    def remembered(self, given: Mapping[str, Any]) -> dict[str, Any]:
        pixels = given["pixel_values"].detach()
        small = torch.nn.functional.adaptive_avg_pool2d(pixels.flatten(0, -4).float(), THUMBNAIL)
        return {**super().remembered(given), "pixel_values": small.view(*pixels.shape[:-2], THUMBNAIL, THUMBNAIL)}

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        side = self.side(self.model.config)
        counts = [length // side**2 for length in lengths]
        tiles = self.tiles(given)
        if sum(counts) != len(tiles) or any(length % side**2 for length in lengths):
            return [None] * len(lengths)
        return [_boxes(side, mine) for mine in torch.split(tiles.cpu(), counts)]

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        side = cls.side(config)
        if any(size % side**2 for size in sizes):
            return None
        return [((side, side),) * (size // side**2) for size in sizes]

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return cls.has_cls

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector, over all tiles of an image: a token's score and key are the means of its patches'."""
        modules, block = self.attentions(), self.block(self.model.config)
        seen: dict[int, tuple[Tensor, Tensor, float]] = {}
        with ExitStack() as stack:
            for at, module in {id(module): module for module in modules}.items():
                stack.enter_context(tapped(module, lambda q, k, s, at=at: seen.update({at: (q, k, s)})))  # type: ignore[misc]
            output = run()
        tapped_states = [seen[id(module)] for module in modules]

        @functools.cache
        def read(layer: int) -> tuple[Tensor, ...]:
            stats = []
            for tile in range(len(tapped_states[0][0])):
                reader = TowerReader(self.has_cls, [(q[tile], k[tile], s) for q, k, s in tapped_states])
                patches = torch.cat((reader.scores(layer)[:, None], reader.keys(layer)), dim=-1)
                side = math.isqrt(len(patches))
                grouped = blocks(patches.view(1, side, side, -1), block)[0]
                stats.append(grouped.view(len(grouped), block**2, -1).mean(dim=1))
            together = torch.cat(stats)
            return torch.split(together, list(reducer.lengths(len(together))))

        images = len(images_of(output, reducer.lengths))
        each = [lambda layer, index=index: read(layer)[index] for index in range(images)]
        return output, self.reduce_features(output, modality, given, reducer, each)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Every tile of a call gets the same size."""
        config, pixels = self.model.config, self.tiles(given)
        side, block = self.side(config), self.block(config)
        lengths = reducer.lengths(len(pixels) * side**2)
        counts = [length // side**2 for length in lengths]
        grids = ((side, side),) * counts[0]
        coarse = reducer.coarsen(grids, lengths[0], 0)
        if coarse == grids:
            return run(), [None] * len(lengths)
        cells = coarse[0]
        patch = pixels.shape[-1] // (side * block)
        output, features = self.project(smaller(pixels, cells[0] * block * patch, cells[1] * block * patch))
        tile = into_cells((side, side), cells)
        whole, cuts = [], []
        for rows, count, length in zip(torch.split(features, counts), counts, lengths, strict=True):
            image = rows.flatten(0, 1)
            cuts.append(cells_cut(image, join([tile] * count)))
            whole.append(first_rows(image, length))
        output.pooler_output = self.form(torch.cat(whole).view(len(pixels), side**2, -1), given)
        return output, cuts

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """As in the base class; a picture is a tile."""
        side = cls.side(config)
        if odd := [size for size in sizes if size % side**2]:
            raise SettingError(f"A tile has {side**2} vision tokens; {odd[0]} is no multiple of that.")
        return cls._tower(config, [(side, side)] * (sum(sizes) // side**2))

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int] | None:
        return cls._tower(config, [grid for image in cells for grid in image])

    @classmethod
    def _tower(cls, config: Any, grids: Sequence[Grid]) -> tuple[int, int]:
        """FLOPs of (tower, projector) on tiles of so many rows and columns of tokens."""
        vision, block, tower = config.vision_config, cls.block(config), 0
        patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
        for rows, columns in grids:
            patches = rows * columns * block**2
            tower += linear(patches, vision.num_channels * patch**2, vision.hidden_size)
            width, inner = vision.hidden_size, vision.intermediate_size
            tower += vision.num_hidden_layers * vit_block(patches + int(cls.has_cls), width, inner)
        return tower, linear(sum(rows * columns for rows, columns in grids), *cls.widths(config))


def blocks(patches: Tensor, block: int) -> Tensor:
    """What pixel shuffle makes of patches: each block of them side by side, row by row.

    (tiles, rows, columns, width) -> (tiles, rows · columns / block², block² · width).
    """
    tiles, rows, columns, width = patches.shape
    cut = patches.reshape(tiles, rows // block, block, columns // block, block, width)
    return cut.transpose(2, 3).reshape(tiles, -1, block**2 * width)


def runs(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Where the runs of True begin and end in each row of (samples, columns)."""
    edges = torch.nn.functional.pad(mask.cpu().to(torch.int8), (1, 1)).diff()
    found = []
    for row in edges:
        starts, ends = (row == 1).nonzero()[:, 0].tolist(), (row == -1).nonzero()[:, 0].tolist()
        found.append(list(zip(starts, ends, strict=True)))
    return found


def mosaic(tiles: Tensor) -> Grid:
    """Rows and columns in which the tiles of a picture stand, raster order, by the tile behind them that shows it all.

    The mosaic that looks most like the whole, in squares of its pixels; of equals the one nearest to a square.

    Args:
        tiles: (tiles + 1, channels, pixels, pixels), float.
    """
    parts, whole = tiles[:-1], tiles[-1]
    count, size = len(parts), whole.shape[-1]

    def order(grid: Grid) -> tuple[float, int]:
        rows, columns = grid
        stitched = parts.view(rows, columns, *whole.shape).permute(2, 0, 3, 1, 4)
        stitched = stitched.reshape(1, -1, rows * size, columns * size)
        seen = torch.nn.functional.adaptive_avg_pool2d(stitched, size)[0]
        return float((seen - whole).square().mean()), abs(rows - columns)

    return min(((rows, count // rows) for rows in range(1, count + 1) if count % rows == 0), key=order)


def _boxes(side: int, tiles: Tensor) -> Tensor:
    """Where the tokens of a picture's tiles look, (tokens, 4): the whole last, alone if there is one tile."""
    view = grid_boxes(side, side)
    if len(tiles) == 1:
        return view
    rows, columns = mosaic(tiles) if len(tiles) > 2 else (1, 1)
    sides = torch.tensor([columns, rows, columns, rows])
    parts = []
    for row in range(rows):
        for column in range(columns):
            parts.append((view + torch.tensor([column, row, column, row])) / sides)
    return torch.cat((*parts, view))
