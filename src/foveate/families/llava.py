"""LLaVA-1.5: one square per image, CLIP patches in raster order, 1-D RoPE."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.core.grid import Grid, into_cells
from foveate.errors import SettingError, UnsupportedError
from foveate.families._encode import (
    Reducer,
    encode_before_projector,
    encoder_layers,
    feature_layer,
    first_rows,
    smaller,
)
from foveate.families._towers import llava_cost, picture_tokens
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Llava"]


class Llava(Family):
    """Where things are inside `LlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava"
    fit: ClassVar[Literal["whole", "crop"]] = "crop"

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        tower, config = self.core.vision_tower, self.model.config
        layer = feature_layer(config, len(encoder_layers(tower)))
        cls = config.vision_feature_select_strategy == "default"
        if not cls and any(name.endswith("class_embedding") for name, _ in tower.named_parameters()):
            raise UnsupportedError(
                "This model takes the tower's CLS for a vision token (vision_feature_select_strategy='full'), so its "
                "tokens are no grid and cannot be reduced in the tower. Use a method that drops between layers."
            )

        def encode(pixels: Tensor) -> tuple[Any, list[Any]]:
            run_these = functools.partial(run, pixel_values=pixels)
            return encode_before_projector(run_these, tower, self.core.multi_modal_projector, layer, cls, reducer)

        pixels = given["pixel_values"]
        if not reducer.early or len(pixels) == 1:
            return encode(pixels)
        # Merged early, images differ in length inside the tower: one at a time, whatever its attention kernel.
        outputs, cuts = zip(*(encode(one[None]) for one in pixels), strict=True)
        whole = outputs[0]
        whole.pooler_output = [features for output in outputs for features in output.pooler_output]
        return whole, [cut for (cut,) in cuts]

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The tower interpolates its position embeddings to the smaller grid."""
        pixels = given["pixel_values"]
        patch = self.model.config.vision_config.patch_size
        grid = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        length = grid[0] * grid[1]
        (cells,) = reducer.coarsen((grid,), length, 0)
        if cells == grid:
            return run(), [None] * len(pixels)
        output = run(pixel_values=smaller(pixels, cells[0] * patch, cells[1] * patch), interpolate_pos_encoding=True)
        cuts = [reducer.replace(rows, into_cells(grid, cells)) for rows in output.pooler_output]
        output.pooler_output = [first_rows(rows, length) for rows in output.pooler_output]
        return output, cuts

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        side = config.vision_config.image_size // config.vision_config.patch_size
        if any(size != side * side for size in sizes):
            return None
        return [((side, side),)] * len(sizes)

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        vision = self.model.config.vision_config
        side = vision.image_size // vision.patch_size
        return [grid_boxes(side, side) if length == side * side else None for length in lengths]

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        if pictures is None:
            each = picture_tokens(config)
            if odd := [size for size in sizes if size % each]:
                raise SettingError(
                    f"This model makes {each} vision tokens of a picture; {odd[0]} is no multiple of that. "
                    "Say with tower_images=… how many pictures the tower encodes."
                )
            pictures = tuple(size // each for size in sizes)
        return llava_cost(config, sum(pictures))

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int] | None:
        costs = [llava_cost(config, 1, grid) for image in cells for grid in image]
        return sum(tower for tower, _ in costs), sum(projector for _, projector in costs)


FAMILY = Llava
