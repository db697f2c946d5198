"""ViP-LLaVA: as LLaVA-1.5, with a projector that reads several layers of the tower."""

from typing import Any, ClassVar

from foveate.families._towers import llava_bytes
from foveate.families.llava import Llava

__all__ = ["FAMILY", "VipLlava"]


class VipLlava(Llava):
    """Where things are inside `VipLlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "vipllava"
    oldest: ClassVar[str] = "5.23"  # its config calls the feature layers otherwise before

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        """The features go into the prompt as they are, not put together anew."""
        return llava_bytes(config, sum(sizes), cls.pictures_of(config, sizes, pictures), itemsize, copies=1)


FAMILY = VipLlava
