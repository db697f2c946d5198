"""LLaVA-1.5: one square per image, CLIP patches in raster order, 1-D RoPE."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Llava"]


class Llava(Family):
    """Where things are inside `LlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava"
    fit: ClassVar[Literal["whole", "crop"]] = "crop"

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        vision = self.model.config.vision_config  # type: ignore[union-attr]
        side = vision.image_size // vision.patch_size
        return [grid_boxes(side, side) if length == side * side else None for length in lengths]


FAMILY = Llava
