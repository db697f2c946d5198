"""Mistral 3: a Pixtral tower for any picture size, s x s patches a token, a break after each row, 1-D RoPE."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells
from foveate.core.signals import TowerSignal
from foveate.core.tensors import send
from foveate.families.base import Family
from foveate.families.placing import replace_images
from foveate.families.tap import Tapped
from foveate.families.thinning import ThinnedTower, TowerLayout
from foveate.families.tiles import block_means
from foveate.families.tower import Encoded, Inputs, Reducer, Run, attentions, feature_layers, shown, tapped_all
from foveate.families.vision import CLIP, grid_boxes, picture_sizes, smaller


class Mistral3(Family):
    """Where things are inside `Mistral3ForConditionalGeneration`.

    The breaks between the rows of an image are text: they stay, and no vision token is one.
    """

    model_type: ClassVar[str] = "mistral3"
    title: ClassVar[str] = "Mistral 3"
    needs_all_rows: ClassVar[str | None] = None
    pixel_mean, pixel_std = CLIP
    decoders: ClassVar[frozenset[str]] = Family.decoders | {"ministral3"}
    shares_prefix: ClassVar[bool] = True

    def thin_tower(self, modality: str, run: Run, inputs: Inputs) -> ThinnedTower:
        tower = self.core.vision_tower
        layers = tower.transformer.layers
        read = feature_layers(self.model.config, len(layers))
        return ThinnedTower(tower, layers, [layer.attention for layer in layers], read, self._layout)

    def _layout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerLayout:
        """Pictures one behind the other, without what pads them to a common size."""
        if "image_sizes" in kwargs:
            sizes = kwargs["image_sizes"]
        else:
            sizes = args[1]
        grids = _grids({"image_sizes": sizes}, self.model.config.vision_config.patch_size)
        return TowerLayout([rows * columns for rows, columns in grids], grids)

    def pictures(self, modality: str, inputs: Inputs, reducer: Reducer) -> Sequence[Tensor]:
        sizes = zip(inputs["pixel_values"], picture_sizes(inputs["image_sizes"]), strict=True)
        return [picture[None, :, :height, :width] for picture, (height, width) in sizes]

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        return [grid_boxes(*grid) for grid in _grids(inputs, _side(config))]

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector, whose merger makes one token of a block of patches: scores and keys are their means.

        The tower runs all images of a call as one sequence, in which each sees itself alone.
        """
        config, layers = self.model.config, self.core.vision_tower.transformer.layers
        # Read before the device has work to wait for.
        inputs = {**inputs, "image_sizes": picture_sizes(inputs["image_sizes"])}
        modules = attentions(layers, reducer.reads, max(feature_layers(config, len(layers))), "attention")
        with tapped_all(modules, keys_of=("k_proj", _keys_of)) as taps:
            output = run()
        grids = _grids(inputs, config.vision_config.patch_size)

        def stats(signal: TowerSignal) -> list[Tensor]:
            (together,) = taps.samples(signal)
            images = _of_images(signal, together, grids)
            return [_token_means(patches, config.spatial_merge_size) for patches in images]

        return output, self.reduce_features(output, modality, inputs, reducer, functools.cache(stats))

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Each image is resized without its padding and padded anew."""
        side = _side(self.model.config)
        pictures: list[Tensor] = []
        merged: list[Cut | None] = []
        for pixels, grid in zip(inputs["pixel_values"], _grids(inputs, side), strict=True):
            rows, columns = grid
            picture = pixels[None, :, : rows * side, : columns * side]  # without padding
            (cells,) = reducer.coarsen((grid,), rows * columns, 0)
            if cells == grid:
                merged.append(None)
            else:
                merged.append(into_cells(grid, cells))
                rows, columns = cells
                picture = smaller(picture, rows * side, columns * side)
            pictures.append(picture[0])
        shapes = [tuple(picture.shape[1:]) for picture in pictures]
        # The model cannot split the features of one token, so it gets two: pictures do not see each other.
        if shapes == [(side, side)]:
            pictures *= 2
            shapes *= 2
        sizes = send(torch.tensor(shapes), inputs["pixel_values"].device)
        output = run(pixel_values=_padded(pictures, sizes), image_sizes=sizes)
        output.pooler_output = list(output.pooler_output)[: len(merged)]
        return output, replace_images(output, merged)

    @classmethod
    def block(cls, config: Any) -> int:
        return int(config.spatial_merge_size)

    @classmethod
    def pictures_of(cls, config: Any, size: int) -> int:
        return 1


def _keys_of(attention: Any, output: Tensor) -> list[Tensor]:
    """Keys before RoPE of the one sequence, (heads, patches, head size), from (1, patches, width)."""
    heads = output[0].view(output.shape[1], attention.num_heads, -1)
    return [heads.transpose(0, 1)]


def _of_images(signal: TowerSignal, together: Tapped, grids: Sequence[Grid]) -> Iterator[Tensor]:
    """What a signal is of each image's patches, which are one sequence in the tower: (1, rows, columns, numbers)."""
    start = 0
    for rows, columns in grids:
        image = slice(start, start + rows * columns)
        yield shown(signal, together.at(image)).reshape(1, rows, columns, -1)
        start = image.stop


def _side(config: Any) -> int:
    """Pixels of a token's side."""
    return int(config.vision_config.patch_size * config.spatial_merge_size)


def _grids(inputs: Inputs, side: int) -> list[Grid]:
    """Rows and columns of each image in squares of `side` pixels."""
    sizes = picture_sizes(inputs["image_sizes"])
    return [(height // side, width // side) for height, width in sizes]


def _token_means(patches: Tensor, block: int) -> Tensor:
    """Means over the patches of each token, (1, rows, columns, numbers) -> (tokens, numbers); patches that fill no
    block are left out."""
    rows, columns = (side // block * block for side in patches.shape[1:3])
    return block_means(patches[:, :rows, :columns], block)


def _padded(pictures: Sequence[Tensor], sizes: Tensor) -> Tensor:
    """Pictures of different sizes, (pictures, 2), with zeros below and right of them: (pictures, channels, …)."""
    height, width = sizes.amax(dim=0).tolist()
    padded = []
    for picture in pictures:
        _, rows, columns = picture.shape
        padded.append(pad(picture, (0, width - columns, 0, height - rows)))
    return torch.stack(padded)


FAMILIES = (Mistral3,)
