"""Qwen3.5: as Qwen3-VL without deepstack; most decoder layers carry a state in the place of attention.

Such a layer (a gated delta net) reads its rows in order, so a row that has left before it never enters its state:
as if the prompt had been shorter there.
"""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from foveate.families._towers import qwen_cost
from foveate.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILY", "Qwen35"]


class Qwen35(Qwen2VL):
    """Where things are inside `Qwen3_5ForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen3_5"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen3_5_text"})
    shares_prefix: ClassVar[bool] = False  # padding before the question would enter its states

    @property
    def recurrent(self) -> frozenset[int]:
        kinds = self.text.config.layer_types
        return frozenset(layer for layer, kind in enumerate(kinds) if kind == "linear_attention")

    def query_projection(self, attention: Any) -> Callable[[Tensor], Tensor]:
        """Each head's query has a gate beside it."""

        def project(rows: Tensor) -> Tensor:
            queries: Tensor = attention.q_proj(rows).unflatten(-1, (-1, 2, attention.head_dim))[..., 0, :].flatten(-2)
            return queries

        return project

    @classmethod
    def _tower(cls, vision: Any, sizes: tuple[int, ...], pictures: tuple[int, ...]) -> tuple[int, int]:
        return qwen_cost(vision, sizes, pictures, inner=vision.intermediate_size, out=vision.out_hidden_size)


FAMILY = Qwen35
