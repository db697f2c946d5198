"""Qwen2-VL: any image size, 2x2 patches merged into one token, M-RoPE."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from foveate.errors import SettingError
from foveate.families._towers import qwen_cost
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Qwen2VL"]


class Qwen2VL(Family):
    """Where things are inside `Qwen2VLForConditionalGeneration`.

    The layers get one (cos, sin) pair with M-RoPE's three axes already combined, so positions need
    nothing special; `rope_deltas` stay those of the unpruned prompt.
    """

    model_type: ClassVar[str] = "qwen2_vl"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_vl_text"})

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        side: int = self.core.visual.spatial_merge_size
        grids = given[f"{modality}_grid_thw"].tolist()
        return [grid_boxes(h // side, w // side).repeat(t, 1) for t, h, w in grids]

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        return tuple(int(frames) for frames, _, _ in given[f"{modality}_grid_thw"])

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """As in the base class; a picture is a temporal patch, one for an image. The merger is the projector."""
        pictures = pictures or (1,) * len(sizes)
        if odd := [(size, count) for size, count in zip(sizes, pictures, strict=True) if count < 1 or size % count]:
            raise SettingError(f"{odd[0][0]} vision tokens do not divide into {odd[0][1]} temporal patches.")
        return cls._tower(config.vision_config, sizes, pictures)

    @classmethod
    def _tower(cls, vision: Any, sizes: tuple[int, ...], pictures: tuple[int, ...]) -> tuple[int, int]:
        inner = int(vision.embed_dim * vision.mlp_ratio)
        return qwen_cost(vision, sizes, pictures, inner=inner, out=vision.hidden_size)


FAMILY = Qwen2VL
