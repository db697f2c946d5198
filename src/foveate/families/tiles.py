"""Shared by the families that cut a picture into square tiles and put a tile behind them that shows all of it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from foveate.core.grid import Grid, into_cells, join
from foveate.core.signals import TowerSignal
from foveate.families.llava import pictures_in, side_of
from foveate.families.merging import Merging
from foveate.families.placing import replace_images
from foveate.families.tower import Encoded, Grids, Inputs, Reducer, Run, Taps
from foveate.families.vision import blocks, grid_boxes, smaller

THUMBNAIL = 32  # pixels of a side that tell which mosaic the tiles of a picture make


class Tiled(Merging):
    """A family whose tower sees tiles, and whose projector makes one token of a block of patches.

    An image with all of its tiles is one item. Tiles carry no place. The last tile shows the whole picture: the mosaic
    that looks most like it is the one the tiles make.

    Attributes:
        has_cls: Whether the tower has a CLS.
        projector: Where the core keeps what makes tokens of blocks of patches.
    """

    tiled: ClassVar[bool] = True
    has_cls: ClassVar[bool] = False
    projector: ClassVar[str] = "multi_modal_projector"
    shares_prefix: ClassVar[bool] = True

    @classmethod
    def side(cls, config: Any) -> int:
        """Tokens of a tile's side."""
        return side_of(config) // cls.block(config)

    @classmethod
    def block(cls, config: Any) -> int:
        """Patches of a token's side."""
        raise NotImplementedError

    @classmethod
    def tiles(cls, inputs: Inputs) -> Tensor:
        """The pixels of all tiles of a call, (tiles, channels, rows, columns), in prompt order and without padding."""
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    def pictures(self, modality: str, inputs: Inputs, reducer: Reducer) -> Sequence[Tensor]:
        tiles, tokens = self.tiles(inputs), self.side(self.model.config) ** 2
        return torch.split(tiles, [length // tokens for length in reducer.lengths(len(tiles) * tokens)])

    def form(self, features: Tensor, inputs: Inputs) -> Any:
        """Features of all tiles, (tiles, tokens, width), in the form the model makes them."""
        return features

    def remembered(self, inputs: Inputs) -> dict[str, Any]:
        """Thumbnails are enough to tell which mosaic the tiles make."""
        pixels = inputs["pixel_values"].detach()  # (…, channels, rows, columns)
        small = adaptive_avg_pool2d(pixels.flatten(0, -4).float(), THUMBNAIL)
        small = small.view(*pixels.shape[:-2], THUMBNAIL, THUMBNAIL)
        return {**super().remembered(inputs), "pixel_values": small}

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        side = cls.side(config)
        tokens = side**2  # of a tile
        counts = [length // tokens for length in lengths]
        tiles = cls.tiles(inputs)
        if sum(counts) != len(tiles) or any(length % tokens for length in lengths):
            return [None] * len(lengths)
        images = torch.split(tiles.cpu(), counts)
        return [_boxes(side, image) for image in images]

    @classmethod
    def token_grids(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> Grids | None:
        side = cls.side(config)
        tokens = side**2  # of a tile
        if any(length % tokens for length in lengths):
            return None
        return [((side, side),) * (length // tokens) for length in lengths]

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return cls.has_cls

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterator[Tensor]:
        for tile in range(len(taps)):
            patches = taps.read(tile, signal)
            side = math.isqrt(len(patches))
            yield block_means(patches.view(1, side, side, -1), self.block(self.model.config))

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Every tile of a call gets the same size. The tower spreads its position embeddings over the patches there
        are."""
        config, pixels = self.model.config, self.tiles(inputs)
        side, block = self.side(config), self.block(config)
        lengths = reducer.lengths(len(pixels) * side**2)
        counts = [length // side**2 for length in lengths]
        grids = ((side, side),) * counts[0]
        coarse = reducer.coarsen(grids, lengths[0], 0)
        if coarse == grids:
            return run(), [None] * len(lengths)
        # Whole tokens of whole patches.
        rows, columns = (cells * block for cells in coarse[0])
        patch = pixels.shape[-1] // (side * block)  # pixels of a patch's side
        pixels = smaller(pixels, rows * patch, columns * patch).to(self.core.dtype)
        state = getattr(config, "vision_feature_layer", -1)
        output = self.tower(pixel_values=pixels, output_hidden_states=state != -1)
        states = output.last_hidden_state if state == -1 else output.hidden_states[state]
        patches = states[:, int(self.has_cls) :].reshape(len(pixels), rows, columns, -1)
        features = self.core.get_submodule(self.projector)(blocks(patches, block))
        output.pooler_output = [tiles.flatten(0, 1) for tiles in torch.split(features, counts)]
        tile = into_cells((side, side), coarse[0])
        cuts = replace_images(output, [join([tile] * count) for count in counts])
        features = torch.cat(output.pooler_output).view(len(pixels), side**2, -1)
        output.pooler_output = self.form(features, inputs)
        return output, cuts

    @classmethod
    def pictures_of(cls, config: Any, size: int) -> int:
        """A picture is a tile."""
        return pictures_in(size, cls.side(config) ** 2)


def block_means(patches: Tensor, block: int) -> Tensor:
    """Means over each block of patches, (1, rows, columns, numbers) -> (blocks, numbers)."""
    grouped = blocks(patches, block)[0]  # (blocks, block² · numbers)
    return grouped.view(len(grouped), block**2, -1).mean(dim=1)


def runs(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Where the runs of True begin and end in each row of (samples, columns): 0 1 1 0 1 has (1, 3) and (4, 5)."""
    # With a 0 before and behind, 0 1 1 0 1 has the differences 0 1 0 −1 1 −1: 1 where a run begins, −1 behind its end.
    edges = pad(mask.cpu().to(torch.int8), (1, 1)).diff()
    runs_of_rows = []
    for row in edges:
        starts = (row == 1).nonzero()[:, 0].tolist()
        ends = (row == -1).nonzero()[:, 0].tolist()
        runs_of_rows.append(list(zip(starts, ends, strict=True)))
    return runs_of_rows


def run_lengths(mask: Tensor) -> list[list[int]]:
    """How long the runs of True are in each row of (samples, columns): 0 1 1 0 1 has 2 and 1."""
    lengths = []
    for row in runs(mask):
        lengths.append([end - start for start, end in row])
    return lengths


def mosaic(tiles: Tensor) -> Grid:
    """Rows and columns in which the tiles of a picture stand, raster order, by the tile behind them that shows it all.

    The mosaic that looks most like the whole, in squares of its pixels; of equals the one nearest to a square.

    Args:
        tiles: (tiles + 1, channels, pixels, pixels), float.
    """
    parts, picture = tiles[:-1], tiles[-1]
    count, size = len(parts), picture.shape[-1]

    def unlike(grid: Grid) -> tuple[float, int]:
        rows, columns = grid
        # (rows, columns, channels, pixels, pixels) -> (1, channels, rows · pixels, columns · pixels)
        stitched = parts.view(rows, columns, *picture.shape)
        stitched = stitched.permute(2, 0, 3, 1, 4)
        stitched = stitched.reshape(1, -1, rows * size, columns * size)
        small = adaptive_avg_pool2d(stitched, size)[0]
        difference = (small - picture).square().mean()
        return float(difference), abs(rows - columns)

    divisors = [rows for rows in range(1, count + 1) if count % rows == 0]
    grids = [(rows, count // rows) for rows in divisors]
    return min(grids, key=unlike)


def _boxes(side: int, tiles: Tensor) -> Tensor:
    """Where the tokens of a picture's tiles look, (tokens, 4): the whole last, alone if there is one tile."""
    view = grid_boxes(side, side)
    if len(tiles) == 1:
        return view
    rows, columns = mosaic(tiles) if len(tiles) > 2 else (1, 1)
    # Each tile's boxes, moved to its place in the mosaic and brought down to the picture's [0, 1]: x0, y0, x1, y1.
    sides = torch.tensor([columns, rows, columns, rows])
    parts = []
    for row in range(rows):
        for column in range(columns):
            place = torch.tensor([column, row, column, row])
            parts.append((view + place) / sides)
    return torch.cat((*parts, view))
