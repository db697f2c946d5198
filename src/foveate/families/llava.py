"""LLaVA-1.5: one square per image, CLIP patches in raster order, 1-D RoPE."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.errors import SettingError
from foveate.families._towers import llava_cost, picture_tokens
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Llava"]


class Llava(Family):
    """Where things are inside `LlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava"
    fit: ClassVar[Literal["whole", "crop"]] = "crop"

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


FAMILY = Llava
