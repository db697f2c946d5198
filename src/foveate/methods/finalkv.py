"""FinalKV: behind any method that cuts between layers, the cache keeps only the tokens that are left at the end.

Part (c) of MustDrop (Liu et al., arXiv:2411.10803), which works without its other parts.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from foveate._upstream import brief
from foveate.errors import SettingError
from foveate.methods import follow
from foveate.methods.base import Method
from foveate.methods.settings import Layer, MethodSetting
from foveate.methods.stages import CacheStage, Shape, Stage

__all__ = ["METHOD", "FinalKV"]

ANY = Shape(depth=1000)
"""Deep enough for any explicit schedule."""


class FinalKV(Method):
    """After the prefill, cuts the caches of earlier layers to the vision tokens that the other methods keep at the end.

        V2Drop() + FinalKV()
        FinalKV(inner=V2Drop())          # the same

    The prefill of the other method does not change, bit for bit. From `first_layer` on, generated tokens attend only
    to its final tokens.

    Attributes:
        inner: The method that drops tokens, unless you join it with `+`.
        first_layer: The first decoder layer whose cache is cut; None: the layer before the first cut, as in
            MustDrop.

    Raises:
        SettingError: If the inner method does not cut in the decoder, or only before `first_layer`.
    """

    name = "finalkv"

    inner: MethodSetting | None = None
    first_layer: Layer | None = None

    def check_settings(self) -> None:
        if isinstance(self.inner, FinalKV):
            raise SettingError(f"inner must be a method that drops tokens; got {brief(self.inner)}.")
        if self.inner is not None:
            self._check_cuts(follow.cut_layers(self.inner.stages(ANY)))

    def _check_cuts(self, cuts: tuple[int, ...]) -> None:
        if not cuts or cuts[-1] == 0:
            raise SettingError(
                f"{self.inner} does not cut between decoder layers, so FinalKV has nothing to shorten. Leave FinalKV "
                "out."
            )
        if self.first_layer is not None and not 0 <= self.first_layer < cuts[-1]:
            raise SettingError(
                f"first_layer must be between 0 and {cuts[-1] - 1}, before the last cut of {self.inner}; got "
                f"{self.first_layer}."
            )

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        cache = CacheStage(first_layer=self.first_layer)
        if self.inner is None:
            return (cache,)
        return (*self.inner.stages(shape), cache)

    def with_budget(self, *, tokens: float | None = None, retention: float | None = None) -> Self:
        if self.inner is None:
            return super().with_budget(tokens=tokens, retention=retention)
        return replace(self, inner=self.inner.with_budget(tokens=tokens, retention=retention))

    @classmethod
    def check_beside_budget(cls, values: Mapping[str, Any]) -> None:
        """Refuse what the `inner` method refuses beside a budget. See `Method.check_beside_budget`."""
        others = dict(values)
        inner, first_layer = others.pop("inner", None), others.pop("first_layer", None)
        super().check_beside_budget({"first_layer": first_layer})
        if not isinstance(inner, type) or not issubclass(inner, Method):
            raise SettingError(
                "FinalKV needs the method that drops tokens. Give inner=…, such as inner=foveate.V2Drop; got "
                f"{brief(inner)}."
            )
        inner.check_beside_budget(others)

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        inner: type[Method] | None = None,
        first_layer: int | None = None,
        **values: Any,
    ) -> Self:
        """The `inner` method's schedule for a budget; the cache saved on top is not part of it. See `Method.solved`."""
        if inner is None:
            raise SettingError(
                "FinalKV needs the method that drops tokens. Give inner=…, such as inner=foveate.V2Drop."
            )
        return cls(inner=inner.solved(share, entered, depth, **values), first_layer=first_layer)


METHOD = FinalKV
