"""Mistral 3: a Pixtral tower for any picture size, s x s patches a token, a break after each row, 1-D RoPE."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.core.cut import Cut
from foveate.core.flops import attention, linear
from foveate.core.grid import Grid, into_cells
from foveate.core.host import send
from foveate.families._encode import Reducer, cells_cut, feature_layers, first_rows, smaller
from foveate.families._tap import tapped
from foveate.families._tiles import blocks
from foveate.families.base import Family, grid_boxes, picture_sizes

__all__ = ["FAMILY", "Mistral3"]


class Mistral3(Family):
    """Where things are inside `Mistral3ForConditionalGeneration`.

    The breaks between the rows of an image are text: they stay, and no vision token is one.
    """

    model_type: ClassVar[str] = "mistral3"
    decoders: ClassVar[frozenset[str]] = Family.decoders | {"ministral3"}
    shares_prefix: ClassVar[bool] = True

    @property
    def _side(self) -> int:
        """Pixels of a token's side."""
        config = self.model.config
        return int(config.vision_config.patch_size * config.spatial_merge_size)

    def _grids(self, given: Mapping[str, Any], side: int = 0) -> list[Grid]:
        """Rows and columns of each image's tokens, or of squares of so many pixels."""
        side = side or self._side
        return [(height // side, width // side) for height, width in picture_sizes(given["image_sizes"])]

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        return [grid_boxes(*grid) for grid in self._grids(given)]

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector, whose merger makes one token of a block of patches: scores and keys are their means.

        The tower runs all images of a call as one sequence, in which each sees itself alone.
        """
        layers, block = self.core.vision_tower.transformer.layers, self.model.config.spatial_merge_size
        given = {**given, "image_sizes": picture_sizes(given["image_sizes"])}  # while nothing is under way to wait for
        module: Any = layers[max(feature_layers(self.model.config, len(layers)))].attention
        seen: list[tuple[Tensor, Tensor, float]] = []
        keys: list[Tensor] = []

        def note_keys(module_: Any, args: Any, output: Tensor) -> None:
            keys.append(output[0].view(output.shape[1], module.num_heads, -1).float().mean(dim=1))  # before RoPE

        handle = module.k_proj.register_forward_hook(note_keys)
        try:
            with tapped(module, lambda *states: seen.append(states)):
                output = run()
        finally:
            handle.remove()
        ((queries, turned, scaling),) = seen
        stats, start = [], 0
        for rows, columns in self._grids(given, self.model.config.vision_config.patch_size):
            mine = slice(start, start + rows * columns)
            scores = received_attention(queries[0, :, mine], turned[0, :, mine], scaling)
            patches = torch.cat((scores[:, None], keys[0][mine]), dim=-1).view(1, rows, columns, -1)
            whole = patches[:, : rows // block * block, : columns // block * block]
            grouped = blocks(whole, block)[0]
            stats.append(grouped.view(len(grouped), block**2, -1).mean(dim=1))
            start = mine.stop
        each = [lambda layer, one=one: one for one in stats]
        return output, self.reduce_features(output, modality, given, reducer, each)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Each image is resized without its padding and padded anew."""
        pictures: list[Tensor] = []
        merges: list[Cut | None] = []
        for picture, (rows, columns) in zip(given["pixel_values"], self._grids(given), strict=True):
            own = picture[None, :, : rows * self._side, : columns * self._side]
            (cells,) = reducer.coarsen(((rows, columns),), rows * columns, 0)
            whole = cells == (rows, columns)
            merges.append(None if whole else into_cells((rows, columns), cells))
            pictures.append(own[0] if whole else smaller(own, cells[0] * self._side, cells[1] * self._side)[0])
        if [tuple(picture.shape[1:]) for picture in pictures] == [(self._side, self._side)]:
            pictures *= 2  # the model cannot split the features of one token; pictures do not see each other
        sizes = send(torch.tensor([picture.shape[1:] for picture in pictures]), given["pixel_values"].device)
        height, width = sizes.amax(dim=0).tolist()
        padded = [
            torch.nn.functional.pad(picture, (0, width - picture.shape[2], 0, height - picture.shape[1]))
            for picture in pictures
        ]
        output = run(pixel_values=torch.stack(padded), image_sizes=sizes)
        features, cuts = list(output.pooler_output)[: len(merges)], []
        for index, merge in enumerate(merges):
            cuts.append(None if merge is None else cells_cut(features[index], merge))
            if merge is not None:
                features[index] = first_rows(features[index], merge.arriving)
        output.pooler_output = features
        return output, cuts

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """As in the base class. Every patch is multiplied with those of all images, as without flash attention; what
        pads images to a common size is not counted."""
        vision, text, block = config.vision_config, config.text_config.hidden_size, config.spatial_merge_size**2
        patches, width, inner = sum(sizes) * block, vision.hidden_size, vision.intermediate_size
        layer = 4 * linear(patches, width, width) + 2 * linear(patches, width, inner) + linear(patches, inner, width)
        layer += attention(patches, patches, width)
        tower = linear(patches, vision.num_channels * vision.patch_size**2, width) + vision.num_hidden_layers * layer
        return tower, linear(sum(sizes), block * width, width, text, text)

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int] | None:
        return cls.tower_cost(config, tuple(rows * columns for ((rows, columns),) in cells), None)


FAMILY = Mistral3
