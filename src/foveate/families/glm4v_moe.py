"""GLM-4.5V: as GLM-4.1V, with a mixture of experts, which see the rows that are left and no others."""

from typing import ClassVar

from foveate.families.glm4v import Glm4v

__all__ = ["FAMILY", "Glm4vMoe"]


class Glm4vMoe(Glm4v):
    """Where things are inside `Glm4vMoeForConditionalGeneration`."""

    model_type: ClassVar[str] = "glm4v_moe"
    decoders: ClassVar[frozenset[str]] = frozenset({"glm4v_moe_text"})


FAMILY = Glm4vMoe
