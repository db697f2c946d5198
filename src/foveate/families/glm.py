"""GLM-4.1V, GLM-4.5V and GLM-4.6V: as Qwen2-VL, with a tower and a merger of their own; a video is many images with
time stamps between."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from foveate.core.patching import Patcher
from foveate.core.tensors import send
from foveate.families.qwen_vl import Qwen2VL
from foveate.families.tap import Segments


class Glm4v(Qwen2VL):
    """Where things are inside `Glm4vForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v"
    title: ClassVar[str] = "GLM-4.1V"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text"})

    def _run_placed(
        self,
        forward: Callable[..., Any],
        pixels: Tensor,
        segments: Mapping[int, Segments],
        placed: dict[str, Any],
        held: Any = None,
    ) -> Any:
        """The embeddings find the picture of a patch on the device, where lengths and grids are the host's."""
        lengths, grids = (send(each, pixels.device) for each in (placed["cu_seqlens"].diff(), placed["grid_thw"]))

        def embed(original: Callable[..., Tensor], patches: Tensor, _: Tensor, __: Tensor, *others: Any) -> Tensor:
            return original(patches, lengths, grids, *others)

        def run(*args: Any, **kwargs: Any) -> Any:
            with Patcher() as patches:
                patches.wrap(self.core.visual.embeddings, "forward", embed)
                return forward(*args, **kwargs)

        return super()._run_placed(run, pixels, segments, placed, (lengths, grids))


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
