"""ViP-LLaVA: as LLaVA-1.5, with a projector that reads several layers of the tower."""

from typing import ClassVar

from foveate.families.llava import Llava

__all__ = ["FAMILY", "VipLlava"]


class VipLlava(Llava):
    """Where things are inside `VipLlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "vipllava"
    oldest: ClassVar[str] = "5.23"  # its config calls the feature layers otherwise before


FAMILY = VipLlava
