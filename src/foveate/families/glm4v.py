"""GLM-4.1V: as Qwen2-VL, with a tower and a merger of its own; a video is many images with time stamps between."""

from typing import Any, ClassVar

from foveate.core.flops import linear
from foveate.families._towers import qwen_cost
from foveate.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILY", "Glm4v"]


class Glm4v(Qwen2VL):
    """Where things are inside `Glm4vForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text"})

    @classmethod
    def _tower(cls, vision: Any, sizes: tuple[int, ...], pictures: tuple[int, ...]) -> tuple[int, int]:
        # The blocks' MLP is as wide as the decoder; the merger, after a convolution over 2 x 2 patches, has one too.
        width, out, group = vision.hidden_size, vision.out_hidden_size, vision.spatial_merge_size**2
        tower, _ = qwen_cost(vision, sizes, pictures, inner=out, out=out, gated=True)
        merger = linear(sum(sizes), group * width, out, out) + linear(sum(sizes), out, 2 * vision.intermediate_size)
        return tower, merger + linear(sum(sizes), vision.intermediate_size, out)


FAMILY = Glm4v
