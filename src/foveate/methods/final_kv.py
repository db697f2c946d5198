"""The decoding stage of MustDrop after any other method: the cache holds the tokens left at the end, and no others.

Stage (c) of Liu et al., arXiv:2411.10803, which needs nothing of its other stages.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from foveate.core.asking import Asking
from foveate.core.grid import Grid
from foveate.core.merge import Merge
from foveate.errors import SettingError
from foveate.methods.base import Cut, Method, TowerView, View

__all__ = ["FinalKV"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalKV(Method):
    """Another method, and after prefill earlier layers' caches cut to the vision tokens that it left at the end.

        FinalKV(inner=V2Drop())

    The prefill is the inner method's, bit for bit; generated tokens then see its final tokens only, from `first_layer`
    on.

    Attributes:
        inner: The method that drops.
        first_layer: The first decoder layer whose cache is cut; None: the layer before the inner method's first cut, as
            MustDrop has it.

    Raises:
        SettingError: If the inner method cuts nowhere in the decoder, or not behind `first_layer`.
    """

    name: ClassVar[str] = "finalkv"

    inner: Method
    first_layer: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Method) or isinstance(self.inner, FinalKV):
            raise SettingError(f"inner is a method that drops; got {self.inner!r}.")
        cuts = self.inner.cuts()
        if not cuts or cuts[-1] == 0:
            raise SettingError(f"{self.inner} cuts nowhere between decoder layers, so its caches are final already.")
        if self.first_layer is not None and not 0 <= self.first_layer < cuts[-1]:
            raise SettingError(
                f"first_layer lies in 0 … {cuts[-1] - 1}, before the last cut of {self.inner}; got {self.first_layer}."
            )

    def kv_layers(self, depth: int) -> Sequence[int]:
        cuts = self.inner.cuts()
        return range(max(0, cuts[0] - 1) if self.first_layer is None else self.first_layer, cuts[-1])

    @property
    def together(self) -> bool:
        return self.inner.together

    @property
    def reindexes(self) -> bool:
        return self.inner.reindexes

    @property
    def reads_text(self) -> bool:
        return self.inner.reads_text

    @property
    def reduces_tower(self) -> bool:
        return self.inner.reduces_tower

    @property
    def merges_early(self) -> bool:
        return self.inner.merges_early

    @property
    def adds_rows(self) -> bool:
        return self.inner.adds_rows

    @property
    def stage(self) -> Literal["pixels", "tower", "projector"]:
        return self.inner.stage

    @property
    def by_frame(self) -> bool:
        return self.inner.by_frame

    def cuts(self) -> tuple[int, ...]:
        return self.inner.cuts()

    def cut(self, view: View) -> Cut | None:
        return self.inner.cut(view)

    def merge_early(self, rows: Tensor, grid: tuple[int, int]) -> Asking[Merge | None]:
        return self.inner.merge_early(rows, grid)

    def reduce(self, view: TowerView) -> Asking[Cut | None]:
        return self.inner.reduce(view)

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        return self.inner.coarsen(grids, entered, reserved)

    def plan_grids(self, depth: int, sizes: Sequence[int], grids: Sequence[Sequence[Grid]]) -> tuple[int, ...] | None:
        return self.inner.plan_grids(depth, sizes, grids)

    def watches(self, layer: int) -> bool:
        return self.inner.watches(layer)

    @property
    def observes_attention(self) -> bool:
        return self.inner.observes_attention

    def observe(self, view: View) -> None:
        self.inner.observe(view)

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
        return self.inner.plan(depth, sizes)

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        return self.inner.scoring_flops(depth, width, sizes)

    def remembered(self, tokens: Sequence[int]) -> tuple[int, ...]:
        return self.inner.remembered(tokens)

    def check(self, depth: int) -> None:
        self.inner.check(depth)

    def to_dict(self) -> dict[str, Any]:
        return {"method": self.name, "inner": self.inner.to_dict(), "first_layer": self.first_layer}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        # By name: the registry knows methods and families, so that methods must not need it to be imported.
        method = importlib.import_module("foveate.registry").method
        inner = values.get("inner")
        if not isinstance(inner, Mapping) or "method" not in inner:
            raise SettingError(f"{cls.name} needs the settings of an inner method; got {inner!r}.")
        outer: dict[str, Any] = {**values, "inner": method(inner["method"]).from_dict(inner)}
        return super(FinalKV, cls).from_dict(outer)  # by name: slots make the class anew

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        inner: type[Method] | None = None,
        first_layer: int | None = None,
        **settings: Any,
    ) -> Self:
        """The inner method's schedule for a budget; the cache saved on top is not part of it.

        Args:
            model: A model or its config.
            tokens: Mean vision tokens a layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            inner: The method that drops.
            first_layer: The first layer whose cache is cut.
            settings: Settings of the inner method.

        Raises:
            SettingError: If there is no inner method, or the budget is contradictory.
        """
        if inner is None:
            raise SettingError("Which method drops? Give inner=…, such as inner=foveate.V2Drop.")
        spent = inner.for_budget(model, tokens=tokens, retention=retention, vision_tokens=vision_tokens, **settings)
        return cls(inner=spent, first_layer=first_layer)
