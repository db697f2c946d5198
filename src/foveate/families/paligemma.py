"""PaliGemma: one square per image, SigLIP patches in raster order; the prompt, image and text, is seen both ways.

The masks say who sees whom, all of the prompt itself and a Gemma 2 its windows; they stay right for the rows that are
left.
"""

from typing import Any, ClassVar, Literal

from foveate.core.flops import linear
from foveate.core.grid import Grid
from foveate.families._towers import picture_tokens, tower_picture
from foveate.families.llava import Llava

__all__ = ["FAMILY", "PaliGemma"]


class PaliGemma(Llava):
    """Where things are inside `PaliGemmaForConditionalGeneration`, with a Gemma or a Gemma 2."""

    model_type: ClassVar[str] = "paligemma"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    fit: ClassVar[Literal["whole", "crop"]] = "whole"
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma", "gemma2"})
    shares_prefix: ClassVar[bool] = False  # what stands before the question sees it

    @classmethod
    def pictures_cost(cls, config: Any, pictures: int, grid: Grid | None = None) -> tuple[int, int]:
        vision = config.vision_config
        projector = linear(picture_tokens(config, grid), vision.hidden_size, vision.projection_dim)
        return pictures * tower_picture(vision, grid), pictures * projector


FAMILY = PaliGemma
