"""Uniform: the control that spreads what it keeps evenly. Same schedule, no score at all."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.rank import spread
from foveate.methods.base import View
from foveate.methods.staged import StagedMethod

__all__ = ["METHOD", "Uniform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(StagedMethod):
    """Keeps tokens at even steps over the survivors, in raster order.

    Steps that divide a grid's width alias into columns (3, 4, 6, 8 and 12 on 24 x 24): keep that in mind
    when reading its figures.

    Attributes:
        layers: Decoder layers whose input is cut; 0 cuts before the decoder.
        keep: Share of the arriving vision tokens that stays at each, in [0, 1].
        min_keep, scope, skip_below: See `StagedMethod`.
    """

    name: ClassVar[str] = "uniform"

    layers: tuple[int, ...] = (3, 17, 22)
    keep: tuple[float, ...] = (0.5, 0.3, 0.0)

    @property
    def together(self) -> bool:
        return True

    def select(self, view: View, count: int) -> Tensor:
        return spread(len(view), count, device=view.tokens.device)


METHOD = Uniform
