"""GLM-4.6V: the tower and the decoders of GLM-4.1V and GLM-4.5V; its processor samples videos in another way."""

from typing import ClassVar

from foveate.families.glm4v import Glm4v

__all__ = ["FAMILY", "Glm46V"]


class Glm46V(Glm4v):
    """Where things are inside `Glm46VForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm46v"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_text", "glm4v_moe_text"})


FAMILY = Glm46V
