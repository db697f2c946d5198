"""Qwen3-VL: as Qwen2-VL, and deepstack: tower features of three depths are added after the first layers.

The model adds them to the full-length stream between layers, which the engine leaves at full length: a
token that left gets its addition too, and nobody reads it.
"""

from typing import ClassVar

from foveate.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILY", "Qwen3VL"]


class Qwen3VL(Qwen2VL):
    """Where things are inside `Qwen3VLForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_vl"


FAMILY = Qwen3VL
