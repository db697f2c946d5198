"""Mistral 3: a Pixtral tower for images of any size, s x s patches per token, a break after each row, 1-D RoPE."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.grid import Grid
from foveate.core.signals import TowerSignal
from foveate.core.tensors import send
from foveate.families.base import Family
from foveate.families.placing import replace_images
from foveate.families.tiles import block_means
from foveate.families.tower import Encoded, ImageReducer, Inputs, KeysOf, Run, Taps, TowerLayout, coarser_grids
from foveate.families.vision import CLIP, PictureLayout, picture_sizes, smaller


def _keys_of(attention: Any, output: Tensor) -> list[Tensor]:
    """Keys before RoPE of the only sequence, (heads, patches, head size), from (1, patches, width)."""
    heads = output[0].view(output.shape[1], attention.num_heads, -1)
    return [heads.transpose(0, 1)]


class Mistral3(Family):
    """The structure of `Mistral3ForConditionalGeneration`.

    The breaks between the rows of an image are text. They stay, and are not vision tokens.
    """

    model_type: ClassVar[str] = "mistral3"
    title: ClassVar[str] = "Mistral 3"
    tower_blocks: ClassVar[str] = "transformer.layers"
    tower_attention: ClassVar[str] = "attention"
    shares_prefix: ClassVar[bool] = True
    needs_all_rows: ClassVar[str | None] = None
    keys_of: ClassVar[KeysOf | None] = ("k_proj", _keys_of)
    parts: ClassVar[bool] = True
    pixel_mean, pixel_std = CLIP
    decoders: ClassVar[frozenset[str]] = Family.decoders | {"ministral3"}

    def tower_layout(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> TowerLayout:
        """As in the base class. Images are packed in order, without the padding to a common size."""
        sizes = kwargs["image_sizes"] if "image_sizes" in kwargs else args[1]
        grids = _grids({"image_sizes": sizes}, self.model.config.vision_config.patch_size)
        return TowerLayout([rows * columns for rows, columns in grids], grids)

    def tower_pixels(self, modality: str, inputs: Inputs, reducer: ImageReducer) -> Sequence[Tensor]:
        sizes = zip(inputs["pixel_values"], picture_sizes(inputs["image_sizes"]), strict=True)
        return [picture[None, :, :height, :width] for picture, (height, width) in sizes]

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        if "image_sizes" not in inputs:
            return [PictureLayout(images=1)] * len(lengths)
        return [PictureLayout((grid,)) for grid in _grids(inputs, _side(config))]

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        sizes = picture_sizes(inputs["image_sizes"])  # copy before work is queued, so that the host does not wait
        return super().encode(run, modality, {**inputs, "image_sizes": sizes}, reducer)

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterator[Tensor]:
        """As in the base class. The tower runs all images of a call as one sequence, in which each sees only itself.

        Patches that do not fill a block are left out.
        """
        config, start = self.model.config, 0
        (together,) = taps.samples(signal)
        block = config.spatial_merge_size
        for rows, columns in _grids(inputs, config.vision_config.patch_size):
            image = slice(start, start + rows * columns)
            patches = together.at(image).read(signal).view(1, rows, columns, -1)
            yield block_means(patches[:, : rows // block * block, : columns // block * block], block)
            start = image.stop

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. Each image is resized without its padding and padded again."""
        side = _side(self.model.config)
        grids = _grids(inputs, side)
        coarse, cuts = coarser_grids(reducer, [(grid,) for grid in grids])
        pictures: list[Tensor] = []
        for pixels, (rows, columns), (cells,), cut in zip(inputs["pixel_values"], grids, coarse, cuts, strict=True):
            picture = pixels[None, :, : rows * side, : columns * side]  # without padding
            if cut is not None:
                picture = smaller(picture, cells[0] * side, cells[1] * side)
            pictures.append(picture[0])
        shapes = [tuple(picture.shape[1:]) for picture in pictures]
        # The model cannot split the features of a single token, so pass the image twice: images do not see each other.
        if shapes == [(side, side)]:
            pictures *= 2
            shapes *= 2
        sizes = send(torch.tensor(shapes), inputs["pixel_values"].device)
        output = run(pixel_values=_pad_pictures(pictures, sizes), image_sizes=sizes)
        output.pooler_output = list(output.pooler_output)[: len(cuts)]
        return output, replace_images(output, cuts)

    @classmethod
    def block(cls, config: Any) -> int:
        return int(config.spatial_merge_size)


def _side(config: Any) -> int:
    """Pixels along a token's side."""
    return int(config.vision_config.patch_size * config.spatial_merge_size)


def _grids(inputs: Inputs, side: int) -> list[Grid]:
    """Rows and columns of each image in squares of `side` pixels."""
    sizes = picture_sizes(inputs["image_sizes"])
    return [(height // side, width // side) for height, width in sizes]


def _pad_pictures(pictures: Sequence[Tensor], sizes: Tensor) -> Tensor:
    """Pad images of different sizes, (images, 2), with zeros below and on the right: (images, channels, …)."""
    height, width = sizes.amax(dim=0).tolist()
    padded = []
    for picture in pictures:
        _, rows, columns = picture.shape
        padded.append(pad(picture, (0, width - columns, 0, height - rows)))
    return torch.stack(padded)
