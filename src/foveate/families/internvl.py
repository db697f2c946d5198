"""InternVL3: up to a dozen square tiles a picture and a view of the whole, 2 x 2 patches a token, 1-D RoPE."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from foveate.families.tiles import Tiled, run_lengths
from foveate.families.vision import IMAGENET


class InternVL(Tiled):
    """Where things are inside `InternVLForConditionalGeneration`.

    A run of placeholders is an image with its tiles, or a frame of a video.
    """

    model_type: ClassVar[str] = "internvl"
    title: ClassVar[str] = "InternVL3"
    videos: ClassVar[bool] = True
    has_cls: ClassVar[bool] = True
    tower_blocks: ClassVar[str] = "encoder.layer"
    tower_attention: ClassVar[str] = "attention"
    pixel_mean, pixel_std = IMAGENET

    @classmethod
    def block(cls, config: Any) -> int:
        return int(1 / config.downsample_ratio)

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        return run_lengths(mask)


FAMILIES = (InternVL,)
