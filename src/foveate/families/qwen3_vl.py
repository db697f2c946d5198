"""Qwen3-VL: as Qwen2-VL, and deepstack: tower features of three depths are added after the first layers.

The model adds them to the full-length stream between layers, which the engine leaves at full length: a
token that left gets its addition too, and nobody reads it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.families._encode import first_rows
from foveate.families._towers import qwen_bytes, qwen_cost
from foveate.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILY", "Qwen3VL"]


class Qwen3VL(Qwen2VL):
    """Where things are inside `Qwen3VLForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_vl"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_vl_text"})

    def added_later(self, given: Mapping[str, Any]) -> list[Tensor] | None:
        return given.get("deepstack_visual_embeds")

    def place_deepstack(self, output: Any, index: int, cut: Any) -> None:
        """A row gets the deepstack features of the token it stands for: they are not merged."""
        for depth, features in enumerate(output.deepstack_features):
            parts = list(features)
            rows = parts[index][cut.source.clamp(min=0)]
            parts[index] = torch.zeros_like(parts[index])
            parts[index][: len(rows)] = rows
            output.deepstack_features[depth] = parts

    def _lengthen_deepstack(self, output: Any, index: int, length: int) -> None:
        for depth, features in enumerate(output.deepstack_features):
            parts = list(features)
            parts[index] = first_rows(parts[index], length)
            output.deepstack_features[depth] = parts

    @classmethod
    def _tower(cls, vision: Any, sizes: tuple[int, ...], pictures: tuple[int, ...]) -> tuple[int, int]:
        inner, out = vision.intermediate_size, vision.out_hidden_size
        return qwen_cost(vision, sizes, pictures, inner=inner, out=out, mergers=_mergers(vision))

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        vision = config.vision_config
        inner, out, mergers = vision.intermediate_size, vision.out_hidden_size, _mergers(vision)
        return qwen_bytes(vision, sum(sizes), itemsize, inner=inner, out=out, mergers=mergers, learned=True)

    @classmethod
    def late_additions(cls, config: Any) -> int:
        return _mergers(config.vision_config) - 1


def _mergers(vision: Any) -> int:
    """Deepstack's count as projectors too: they make decoder-wide features."""
    count: int = 1 + sum(index < vision.depth for index in vision.deepstack_visual_indexes)
    return count


FAMILY = Qwen3VL
