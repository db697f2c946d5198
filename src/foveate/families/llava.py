"""LLaVA-1.5 and ViP-LLaVA: one square per image, CLIP patches in raster order, 1-D RoPE."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.grid import Grid, into_cells
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.costs import Counts, Flops, drops_cls, llava_bytes, llava_cost, picture_tokens, pictures_in
from foveate.families.placing import replace_images
from foveate.families.tower import (
    Encoded,
    Inputs,
    Reducer,
    Run,
    encode_before_projector,
    encoder_layers,
    feature_layers,
)
from foveate.families.vision import grid_boxes, picture_sizes, smaller

__all__ = ["FAMILIES", "Llava", "VipLlava"]


class Llava(Family):
    """Where things are inside `LlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava"
    title: ClassVar[str] = "LLaVA-1.5"
    fit: ClassVar[Literal["whole", "crop"]] = "crop"
    shares_prefix: ClassVar[bool] = True

    @property
    def tower(self) -> Any:
        """Encodes images."""
        return self.core.vision_tower

    @property
    def side(self) -> int:
        """Patches along a side of a picture."""
        vision = self.model.config.vision_config
        return int(vision.image_size // vision.patch_size)

    def pixels(self, inputs: Inputs) -> str:
        """The argument that pictures are given in."""
        return "pixel_values"

    def _check_cls(self) -> bool:
        """Whether the tower has a CLS, which is left out.

        Raises:
            UnsupportedError: If what is left is no grid of patches, or the tower has no layers of the usual kind.
        """
        cls = drops_cls(self.model.config)
        encoder_layers(self.tower)  # or a refusal
        parameters = (name for name, _ in self.tower.named_parameters())
        if cls == any(name.endswith("class_embedding") for name in parameters):
            return cls
        what = "drops a patch as if it were a CLS" if cls else "uses the tower's CLS as a vision token"
        raise UnsupportedError(
            f"This model {what} (vision_feature_select_strategy={'default' if cls else 'full'!r}), so its tokens "
            "do not form a grid and cannot be reduced in the tower. Use a method that drops between layers."
        )

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        if config is None:
            return None
        return drops_cls(config)

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        tower, cls = self.tower, self._check_cls()
        layers = feature_layers(self.model.config, len(encoder_layers(tower)))
        return encode_before_projector(run, tower, self.core.multi_modal_projector, layers, cls, reducer)

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """The tower interpolates its position embeddings to the smaller grid."""
        self._check_cls()
        name = self.pixels(inputs)
        pixels, patch = inputs[name], self.model.config.vision_config.patch_size
        height, width = pixels.shape[-2:]
        grid = (height // patch, width // patch)
        (cells,) = reducer.coarsen((grid,), math.prod(grid), 0)
        if cells == grid:
            return run(), [None] * len(pixels)
        rows, columns = cells
        small = smaller(pixels, rows * patch, columns * patch)
        output = run(**{name: small, "interpolate_pos_encoding": True})
        images = output.pooler_output
        merged = into_cells(grid, cells)  # the same of every picture
        features, cuts = replace_images(images, [merged] * len(images))
        output.pooler_output = torch.stack(features) if isinstance(images, Tensor) else features
        return output, cuts

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        if any(size != side * side for size in sizes):
            return None
        return [((side, side),)] * len(sizes)

    def boxes(self, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        if inputs.get("image_sizes") is not None:  # a Pixtral tower takes pictures of any shape
            patch = self.model.config.vision_config.patch_size
            sizes = picture_sizes(inputs["image_sizes"])
            return [grid_boxes(height // patch, width // patch) for height, width in sizes]
        picture = grid_boxes(self.side, self.side)
        by_length = {len(picture): picture}  # of any other length nothing is known
        return [by_length.get(length) for length in lengths]

    @classmethod
    def tower_cost(cls, config: Any, sizes: Counts, pictures: Counts | None) -> Flops:
        count = cls.pictures_of(config, sizes, pictures)
        return cls.pictures_cost(config, count)

    @classmethod
    def tower_bytes(cls, config: Any, sizes: Counts, pictures: Counts | None, itemsize: int) -> tuple[int, int] | None:
        count = cls.pictures_of(config, sizes, pictures)
        return llava_bytes(config, sum(sizes), count, itemsize)

    @classmethod
    def pictures_of(cls, config: Any, sizes: Counts, pictures: Counts | None) -> int:
        """Pictures the tower encodes in all; where that is not given, as many as make these vision tokens.

        Raises:
            SettingError: If the tokens are no multiple of a picture's.
        """
        if pictures is not None:
            return sum(pictures)
        advice = " Say with tower_images=… how many pictures the tower encodes."
        return pictures_in(sizes, picture_tokens(config), advice)

    @classmethod
    def pictures_cost(cls, config: Any, pictures: int, grid: Grid | None = None) -> Flops:
        """FLOPs of (tower, projector) on `pictures` pictures of the usual size, or of a grid of patches."""
        return llava_cost(config, pictures, grid)

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> Flops | None:
        tower = projector = 0
        for grid in itertools.chain.from_iterable(cells):
            of_tower, of_projector = cls.pictures_cost(config, 1, grid)
            tower += of_tower
            projector += of_projector
        return tower, projector


class VipLlava(Llava):
    """Where things are inside `VipLlavaForConditionalGeneration`, whose projector reads several layers of the tower."""

    model_type: ClassVar[str] = "vipllava"
    title: ClassVar[str] = "ViP-LLaVA"
    oldest: ClassVar[str] = "5.23"  # its config calls the feature layers otherwise before

    @classmethod
    def tower_bytes(cls, config: Any, sizes: Counts, pictures: Counts | None, itemsize: int) -> tuple[int, int] | None:
        """One copy of the vision tokens: the features go into the prompt as the projector makes them."""
        count = cls.pictures_of(config, sizes, pictures)
        return llava_bytes(config, sum(sizes), count, itemsize, copies=1)


FAMILIES = (Llava, VipLlava)
