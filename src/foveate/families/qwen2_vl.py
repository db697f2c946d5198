"""Qwen2-VL: any image size, 2x2 patches merged into one token, M-RoPE."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Qwen2VL"]


class Qwen2VL(Family):
    """Where things are inside `Qwen2VLForConditionalGeneration`.

    The layers get one (cos, sin) pair with M-RoPE's three axes already combined, so positions need
    nothing special; `rope_deltas` stay those of the unpruned prompt.
    """

    model_type: ClassVar[str] = "qwen2_vl"

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        side: int = self.core.visual.spatial_merge_size  # type: ignore[assignment, union-attr]
        grids = given[f"{modality}_grid_thw"].tolist()
        return [grid_boxes(h // side, w // side).repeat(t, 1) for t, h, w in grids]


FAMILY = Qwen2VL
