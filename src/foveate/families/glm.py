"""GLM-4.1V, GLM-4.5V and GLM-4.6V: as Qwen2-VL, with a tower and a merger of their own; a video is many images with
time stamps between."""

from dataclasses import replace
from typing import Any, ClassVar

from foveate.core.flops import linear
from foveate.families.qwen_vl import Qwen2VL, qwen_shape
from foveate.families.shape import TowerShape


class Glm4v(Qwen2VL):
    """Where things are inside `Glm4vForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v"
    title: ClassVar[str] = "GLM-4.1V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text"})

    @classmethod
    def tower_shape(cls, config: Any) -> TowerShape:
        """The blocks' MLP is as wide as the decoder; behind its convolution of 2 x 2 patches the merger has one too."""
        vision = config.vision_config
        out, inner = vision.out_hidden_size, vision.intermediate_size
        shape = qwen_shape(vision, out, inner=out)
        convolution = linear(1, shape.patches * shape.width, out, out)
        mlp = linear(1, out, 2 * inner) + linear(1, inner, out)  # gated
        return replace(shape, gated=True, projector=convolution + mlp)


class Glm4vMoe(Glm4v):
    """Where things are inside `Glm4vMoeForConditionalGeneration`; experts see the rows that are left and no others."""

    model_type: ClassVar[str] = "glm4v_moe"
    title: ClassVar[str] = "GLM-4.5V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_moe_text"})


class Glm46V(Glm4v):
    """Where things are inside `Glm46VForConditionalGeneration`: the tower and the decoders of the other two; its
    processor samples videos in another way."""

    model_type: ClassVar[str] = "glm46v"
    title: ClassVar[str] = "GLM-4.6V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text", "glm4v_moe_text"})
