"""Coordinates: reserve a share of each cut before a decoder layer for rows chosen by their position in the prompt.

Paper: Sun et al., "IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning", ICLR 2026,
arXiv:2602.03060, which adds such rows to other methods. Built from a description. Here these rows are part of the
budget.

C and S are the mean cosine and the mean sine of the angles by which RoPE rotates a row. Of `count` rows that stay:

    c = min(round(part · count), count − 1) rows are chosen by position; the other method picks count − c
    place of a row = min(2 · its rank by C, 2 · its rank by S + 1), so C and S alternate
    the rows with the lowest place fill up to `count`
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.contract import Cut, ImageStage, LayerStage, LayerView, Method, Rotary, Shape, Share, Stage
from foveate.core.rank import ranks, top
from foveate.errors import SettingError


class Coordinates(Method):
    """Makes other methods keep a share of their rows by position: those that RoPE rotates least, or by a quarter turn.

        FastV() + Coordinates()

    Counts, plans and budgets remain those of the other methods. It does nothing alone, and nothing to cuts in the tower
    or of the cache. Methods that drop between tower and decoder are refused, because the prompt is not known there.

    Attributes:
        part: Share of the rows that each cut before a decoder layer keeps by position. 0 leaves the other method
            unchanged, bit for bit. By default the paper's ratio: 10 % by C and 10 % by S of a cut that keeps 50 %.

    Raises:
        SettingError: When a chain with it is applied, if the chain renumbers rows (which undoes its effect), drops
            between tower and decoder, or has a cut whose count is not known. During the forward, if a cut merges.
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
            raise SettingError(
                f"coordinates keeps rows for their positions, but {stage} renumbers. Use positions='keep'."
            )
        if isinstance(stage, ImageStage) and stage.drops:
            raise SettingError("coordinates cannot be combined with a method that drops between tower and decoder.")
        if not isinstance(stage, LayerStage) or not stage.drops:
            return stage
        own = stage.score or stage.pick
        if own is None:
            raise SettingError(f"coordinates needs a cut that says how many tokens stay; {stage} does not.")
        pick = _Around(own, self.part, stage.score is not None)
        return replace(stage, reads=tuple(dict.fromkeys((*stage.reads, Rotary()))), score=None, pick=pick)


@dataclass(frozen=True)
class _Around:
    """Another method's pick, with a part of its rows replaced by rows chosen by position.

    Attributes:
        func: The other method's pick, or its score.
        part: See `Coordinates`.
        scores: Whether `func` returns scores.
    """

    func: Callable[..., Tensor | Cut]
    part: float
    scores: bool

    def __call__(self, view: LayerView, count: int) -> Tensor:
        left = count - max(0, min(round(self.part * count), count - 1))
        own = top(self.func(view), left) if self.scores else self.func(view, left)  # type: ignore[arg-type]
        if isinstance(own, Cut):
            if own.rows is not None:
                raise SettingError(
                    "coordinates cannot be combined with a cut that merges. Use a method that only drops."
                )
            own = own.source
        # Rows of the other method get place −1, so they come first; the lowest places fill up to `count`.
        return top(-places(view[Rotary()]).scatter(0, own, -1), count)


def places(rotary: Tensor) -> Tensor:
    """The place of each row when C and S alternate: (tokens, 2) -> (tokens,) int64, lower comes first."""
    by_cosine, by_sine = ranks(rotary.T)
    return torch.minimum(2 * by_cosine, 2 * by_sine + 1)
