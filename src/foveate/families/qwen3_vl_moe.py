"""Qwen3-VL with a mixture of experts: as Qwen3-VL; experts see the rows that are left and no others."""

from typing import ClassVar

from foveate.families.qwen3_vl import Qwen3VL

__all__ = ["FAMILY", "Qwen3VLMoe"]


class Qwen3VLMoe(Qwen3VL):
    """Where things are inside `Qwen3VLMoeForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_vl_moe"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_vl_moe_text"})


FAMILY = Qwen3VLMoe
