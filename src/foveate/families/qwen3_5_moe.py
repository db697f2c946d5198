"""Qwen3.5 with a mixture of experts: as Qwen3.5; experts see the rows that are left and no others."""

from typing import ClassVar

from foveate.families.qwen3_5 import Qwen35

__all__ = ["FAMILY", "Qwen35Moe"]


class Qwen35Moe(Qwen35):
    """Where things are inside `Qwen3_5MoeForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_5_moe"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_5_moe_text"})


FAMILY = Qwen35Moe
