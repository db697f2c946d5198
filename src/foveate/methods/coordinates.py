"""Coordinates: beside any method that cuts before decoder layers, some rows stay for where they stand in the prompt.

Paper: Sun et al., "IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning", ICLR 2026,
arXiv:2602.03060, which adds such rows to other methods. Built from a description; the rows are inside the budget here.

With C and S the mean cosine and the mean sine of what RoPE turns a row by, of `count` rows that stay:

    c = min(round(part · count), count − 1), and the method itself picks count − c
    a row's place = min(2 · its rank by C, 2 · its rank by S + 1), so C and S take turns
    then rows by place, until there are `count`
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.contract import Cut, ImageStage, LayerStage, LayerView, Method, Rotary, Shape, Share, Stage
from foveate.core.rank import ranks, top
from foveate.errors import SettingError


class Coordinates(Method):
    """A share of what other methods of a chain keep goes to rows where RoPE turns least, or by a quarter.

        FastV() + Coordinates()

    Counts, plans and budgets stay those of the other methods. By itself it does nothing, and so beside cuts in the
    tower or of the cache; what drops between tower and decoder is refused, as nothing there knows the prompt.

    Attributes:
        part: Share of the rows that stay, at each cut before a decoder layer; 0 is the other method, bit for bit. By
            default the paper's ratio, 10 % by C and 10 % by S of which 50 % stay.

    Raises:
        SettingError: Where a chain with it is put on, if the chain numbers rows anew, which undoes what it keeps, drops
            between tower and decoder, or has a cut whose count is not known; and where a cut merges.
    """

    name = "coordinates"

    part: Share = 0.4

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return ()

    def around(self, stages: tuple[Stage, ...], shape: Shape) -> tuple[Stage, ...]:
        if self.part:
            return tuple(self._around(stage, shape) for stage in stages)
        return stages

    def _around(self, stage: Stage, shape: Shape) -> Stage:
        if shape.numbers_anew(stage.positions):
            raise SettingError(f"coordinates keeps rows for their positions, and {stage} renumbers: positions='keep'.")
        if isinstance(stage, ImageStage) and stage.drops:
            raise SettingError("coordinates cannot stand around a method that drops between tower and decoder.")
        if not isinstance(stage, LayerStage) or not stage.drops:
            return stage
        own = stage.score or stage.pick
        if own is None:
            raise SettingError(f"coordinates needs a cut that says how many tokens stay; {stage} does not.")
        pick = _Around(own, self.part, stage.score is not None)
        return replace(stage, reads=tuple(dict.fromkeys((*stage.reads, Rotary()))), score=None, pick=pick)


@dataclass(frozen=True)
class _Around:
    """Picks as another function does, and by place.

    Attributes:
        func: The other's pick, or its score.
        part: See `Coordinates`.
        scores: Whether `func` gives scores.
    """

    func: Callable[..., Tensor | Cut]
    part: float
    scores: bool

    def __call__(self, view: LayerView, count: int) -> Tensor:
        left = count - max(0, min(round(self.part * count), count - 1))
        own = top(self.func(view), left) if self.scores else self.func(view, left)  # type: ignore[arg-type]
        if isinstance(own, Cut):
            if own.rows is not None:
                raise SettingError("coordinates cannot stand around a cut that merges. Use a method that only drops.")
            own = own.source
        return top(-places(view[Rotary()]).scatter(0, own, -1), count)


def places(rotary: Tensor) -> Tensor:
    """Who comes first, by C and by S in turn: (tokens, 2) -> (tokens,) int64, all different."""
    by_cosine, by_sine = ranks(rotary.T)
    return torch.minimum(2 * by_cosine, 2 * by_sine + 1)


METHOD = Coordinates
