"""GLM-4.1V, GLM-4.5V and GLM-4.6V: as Qwen2-VL, with a tower and a merger of their own; a video is many images with
time stamps between."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from foveate.core.flops import linear
from foveate.core.patching import Patcher
from foveate.core.tensors import send
from foveate.families.qwen_vl import Qwen2VL, qwen_shape
from foveate.families.shape import TowerShape


class Glm4v(Qwen2VL):
    """Where things are inside `Glm4vForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v"
    title: ClassVar[str] = "GLM-4.1V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text"})

    def _run_placed(self, run: Callable[..., Any], pixels: Tensor, held: Any, **options: Any) -> Any:
        """The embeddings find the picture of a patch on the device, where lengths and grids are the host's."""
        ends, grids = options["cu_seqlens"], options["grid_thw"]
        lengths, grids = send(ends.diff(), pixels.device), send(grids, pixels.device)

        def embed(forward: Callable[..., Tensor], patches: Tensor, _: Tensor, __: Tensor, *others: Any) -> Tensor:
            return forward(patches, lengths, grids, *others)

        def run_with(*args: Any, **kwargs: Any) -> Any:
            with Patcher() as patches:
                patches.wrap(self.core.visual.embeddings, "forward", embed)
                return run(*args, **kwargs)

        return super()._run_placed(run_with, pixels, (held, lengths, grids), **options)

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


FAMILIES = (Glm4v, Glm4vMoe, Glm46V)
