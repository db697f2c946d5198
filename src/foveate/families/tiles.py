"""InternVL3, SmolVLM and Idefics3: square tiles and one tile of the whole image, s x s patches per token, 1-D RoPE."""

import functools
import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, pad

from foveate.core.grid import Grid, into_cells, join
from foveate.core.signals import TowerSignal
from foveate.families.base import Family
from foveate.families.llava import side_of
from foveate.families.placing import replace_images
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, Taps
from foveate.families.vision import IMAGENET, PictureLayout, patch_blocks, smaller

THUMBNAIL = 32  # side, in pixels, of the thumbnails from which the layout of an image's tiles is found


class Tiled(Family):
    """A family whose tower processes tiles, and whose projector makes one token from a block of patches.

    An image with all of its tiles is one item. Tiles carry no place. The last tile shows the whole image, and the
    layout of the other tiles is the one that looks most like it.

    Attributes:
        projector: Path in the core of the module that makes tokens from blocks of patches.
    """

    tiled: ClassVar[bool] = True
    projector: ClassVar[str] = "multi_modal_projector"
    shares_prefix: ClassVar[bool] = True
    needs_all_rows: ClassVar[str | None] = None

    @classmethod
    def side(cls, config: Any) -> int:
        """Tokens along a tile's side."""
        return side_of(config) // cls.block(config)

    @classmethod
    def tiles(cls, inputs: Inputs) -> Tensor:
        """The pixels of all tiles of a call, (tiles, channels, rows, columns), in prompt order and without padding."""
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    def tower_pixels(self, modality: str, inputs: Inputs, reducer: ImageReducer) -> Sequence[Tensor]:
        tiles, tokens = self.tiles(inputs), self.side(self.model.config) ** 2
        return torch.split(tiles, [length // tokens for length in reducer.lengths(len(tiles) * tokens)])

    def form(self, features: Tensor, inputs: Inputs) -> Any:
        """Features of all tiles, (tiles, tokens, width), in the form in which the model makes them."""
        return features

    def arguments_kept(self, inputs: Inputs) -> dict[str, Any]:
        """As in the base class, with pixels reduced to thumbnails, which are enough to find the layout of the tiles."""
        pixels = inputs["pixel_values"].detach()  # (…, channels, rows, columns)
        small = adaptive_avg_pool2d(pixels.flatten(0, -4).float(), THUMBNAIL)
        small = small.view(*pixels.shape[:-2], THUMBNAIL, THUMBNAIL)
        return {**super().arguments_kept(inputs), "pixel_values": small}

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        grid = (cls.side(config), cls.side(config))
        tokens = math.prod(grid)  # tokens in a tile
        counts = [length // tokens for length in lengths]
        if any(length % tokens for length in lengths):
            return super().pictures(config, modality, inputs, lengths)

        @functools.cache
        def images() -> Sequence[Tensor]:
            """The tiles of each image. Empty if they are not those of this call."""
            tiles = cls.tiles(inputs)
            return torch.split(tiles.cpu(), counts) if sum(counts) == len(tiles) else ()

        def place(index: int, cells: Tensor) -> Tensor | None:
            return _on_mosaic(images()[index], cells) if images() else None

        return [PictureLayout((grid,) * count, place=partial(place, index)) for index, count in enumerate(counts)]

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterator[Tensor]:
        for patches in taps.read(signal):
            side = math.isqrt(len(patches))
            yield block_means(patches.view(1, side, side, -1), self.block(self.model.config))

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. All tiles of a call get one size. The tower interpolates position embeddings."""
        config, pixels = self.model.config, self.tiles(inputs)
        side, block = self.side(config), self.block(config)
        lengths = reducer.lengths(len(pixels) * side**2)
        counts = [length // side**2 for length in lengths]
        grids = ((side, side),) * counts[0]
        coarse = reducer.coarsen(grids, lengths[0], 0)
        if coarse == grids:
            return run(), [None] * len(lengths)
        # Rows and columns of patches, for whole tokens.
        rows, columns = (cells * block for cells in coarse[0])
        patch = pixels.shape[-1] // (side * block)  # pixels of a patch's side
        pixels = smaller(pixels, rows * patch, columns * patch).to(self.core.dtype)
        state = getattr(config, "vision_feature_layer", -1)
        output = self.tower(pixel_values=pixels, output_hidden_states=state != -1)
        states = output.last_hidden_state if state == -1 else output.hidden_states[state]
        patches = states[:, int(self.tower_cls) :].reshape(len(pixels), rows, columns, -1)
        features = self.core.get_submodule(self.projector)(patch_blocks(patches, block))
        output.pooler_output = [tiles.flatten(0, 1) for tiles in torch.split(features, counts)]
        tile = into_cells((side, side), coarse[0])
        cuts = replace_images(output, [join([tile] * count) for count in counts])
        features = torch.cat(output.pooler_output).view(len(pixels), side**2, -1)
        output.pooler_output = self.form(features, inputs)
        return output, cuts


def block_means(patches: Tensor, block: int) -> Tensor:
    """Means over each block of patches, (1, rows, columns, numbers) -> (blocks, numbers)."""
    grouped = patch_blocks(patches, block)[0]  # (blocks, block² · numbers)
    return grouped.view(len(grouped), block**2, -1).mean(dim=1)


def runs(mask: Tensor) -> list[list[tuple[int, int]]]:
    """Begin and end of the runs of True in each row of (samples, columns): 0 1 1 0 1 has (1, 3) and (4, 5)."""
    # Padded with zeros, 0 1 1 0 1 has the differences 0 1 0 −1 1 −1: 1 where a run begins, −1 after its end.
    edges = pad(mask.cpu().to(torch.int8), (1, 1)).diff()
    runs_of_rows = []
    for row in edges:
        starts = (row == 1).nonzero()[:, 0].tolist()
        ends = (row == -1).nonzero()[:, 0].tolist()
        runs_of_rows.append(list(zip(starts, ends, strict=True)))
    return runs_of_rows


def run_lengths(mask: Tensor) -> list[list[int]]:
    """Lengths of the runs of True in each row of (samples, columns): 0 1 1 0 1 has 2 and 1."""
    lengths = []
    for row in runs(mask):
        lengths.append([end - start for start, end in row])
    return lengths


def mosaic(tiles: Tensor) -> Grid:
    """Rows and columns of an image's tiles, in raster order, found by the last tile, which shows the whole image.

    The layout that looks most like the whole image. Ties go to the one nearest to a square.

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


def _on_mosaic(tiles: Tensor, cells: Tensor) -> Tensor:
    """Move the cells of an image's tiles, (cells, 4), to the tiles' places. The view of the whole image is last."""
    count = len(tiles) - 1
    if not count:
        return cells
    rows, columns = mosaic(tiles) if count > 1 else (1, 1)
    # Move each tile's cells to its place in the layout, and scale them to the image's [0, 1]: x0, y0, x1, y1.
    sides = torch.tensor([columns, rows, columns, rows])
    row, column = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
    places = torch.stack((column, row, column, row), dim=-1)  # (tiles, 4)
    *of_tiles, view = torch.split(cells, len(cells) // len(tiles))
    moved = (torch.stack(of_tiles) + places[:, None]) / sides
    return torch.cat((*moved, view))


class InternVL(Tiled):
    """The structure of `InternVLForConditionalGeneration`.

    A run of placeholders is an image with its tiles, or a frame of a video.
    """

    model_type: ClassVar[str] = "internvl"
    title: ClassVar[str] = "InternVL3"
    videos: ClassVar[bool] = True
    tower_blocks: ClassVar[str] = "encoder.layer"
    tower_attention: ClassVar[str] = "attention"
    pixel_mean, pixel_std = IMAGENET

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        return True

    @classmethod
    def block(cls, config: Any) -> int:
        return int(1 / config.downsample_ratio)

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        return run_lengths(mask)


REAL = "foveate_real_tiles"
"""Name of the kept argument that says which tiles are not padding."""


class SmolVLM(Tiled):
    """The structure of `SmolVLMForConditionalGeneration`.

    Features come sample by sample. A tile is a run of placeholders after a text tag with its row and column. An image
    ends with the run whose tag is that of the whole view. A frame of a video is such an image.
    """

    model_type: ClassVar[str] = "smolvlm"
    title: ClassVar[str] = "SmolVLM"
    closing_tokens: ClassVar[int] = 1  # the fence after its last tile shows where an image ends
    videos: ClassVar[bool] = True
    decoder: ClassVar[str] = "text_model"
    projector: ClassVar[str] = "connector.modality_projection"
    mergers: ClassVar[tuple[str, ...]] = ("get_placeholder_mask", "inputs_merger")

    @classmethod
    def block(cls, config: Any) -> int:
        return int(config.scale_factor)

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """As in the base class. `inputs_merger` returns embeddings, so tokens are found by their id or embedding."""
        if self.merger == "get_placeholder_mask":
            return super().vision_masks(placeholders, inputs)
        ids, embeds = inputs.get("input_ids"), inputs["inputs_embeds"]
        image = self.model.config.image_token_id
        if ids is not None:
            return [("image", ids == image)]
        table = self.core.get_input_embeddings()
        placeholder = table(embeds.new_full((), image, dtype=torch.long))
        mask = (embeds == placeholder).all(dim=-1)
        return [("image", mask)]

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """As in the base class, by the tags. If the prompt came as embeddings, every tile counts as an image."""
        if ids is None:
            return run_lengths(mask)
        ids, placed = torch.stack((ids, mask.to(ids))).cpu()  # one host sync
        samples = zip(ids.tolist(), runs(placed), strict=True)
        return [_images(row, tiles) for row, tiles in samples]

    @classmethod
    def tiles(cls, inputs: Inputs) -> Tensor:
        pixels: Tensor = inputs["pixel_values"]
        if pixels.dim() != 5:  # already (tiles, channels, rows, columns), not grouped by sample
            return pixels
        real = inputs[REAL] if REAL in inputs else _real(pixels)
        return pixels[real]

    def arguments_kept(self, inputs: Inputs) -> dict[str, Any]:
        """As in the base class, and which tiles are not padding, because pixels are not kept."""
        remembered = super().arguments_kept(inputs)
        pixels = inputs["pixel_values"]
        if pixels.dim() == 5 and REAL not in inputs:
            remembered[REAL] = _real(pixels)
        return remembered

    def form(self, features: Tensor, inputs: Inputs) -> Any:
        if "mm_encoder_outputs" not in inspect.signature(self.core.forward).parameters:  # 5.16: tile by tile
            return features
        counts = _real(inputs["pixel_values"]).sum(dim=1).tolist()
        return [sample.flatten(0, 1) for sample in torch.split(features, counts)]


class Idefics3(SmolVLM):
    """The structure of `Idefics3ForConditionalGeneration`: a SmolVLM whose merger does not show the vision tokens."""

    model_type: ClassVar[str] = "idefics3"
    title: ClassVar[str] = "Idefics3"
    videos: ClassVar[bool] = False


def _real(pixels: Tensor) -> Tensor:
    """Mark the tiles that are not all zeros, as padding is, (samples, tiles) bool. The model does the same."""
    real = (pixels != 0).flatten(2).any(dim=2)
    real[0, 0] |= ~real.any()  # if all tiles are zeros, the first one counts
    return real


def _images(ids: list[int], tiles: list[tuple[int, int]]) -> list[int]:
    """Vision tokens of each image of a sample, from its ids and the begin and end of each tile's run."""
    lengths = [end - start for start, end in tiles]
    if not tiles or tiles[-1][1] == len(ids):
        return lengths
    tags = _tags(ids, tiles)
    images = [0]
    for length, tag in zip(lengths, tags, strict=True):
        images[-1] += length
        if tag == tags[-1]:  # the tag of the whole view ends an image
            images.append(0)
    return images[:-1]


def _tags(ids: list[int], tiles: list[tuple[int, int]]) -> list[tuple[int, ...] | None]:
    """The text tag of each tile: the ids between a fence and the tile. None if there is no fence.

    A fence comes before every tag, and after every image:

        <fence> <row_1_col_1> tile <fence> <row_1_col_2> tile <fence> <global-img> tile <fence>
    """
    fence = ids[tiles[-1][1]]
    tags: list[tuple[int, ...] | None] = []
    for (_, before), (start, _) in itertools.pairwise([(0, 0), *tiles]):
        # Search between the previous tile, or the start of the prompt, and this tile. The last fence is this tile's.
        fences = [at for at in range(before, start) if ids[at] == fence]
        tag: tuple[int, ...] | None = tuple(ids[fences[-1] + 1 : start]) if fences else None
        tags.append(tag)
    return tags
