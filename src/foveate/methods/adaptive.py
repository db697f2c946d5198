"""Adaptive: a threshold on another method's scores, so that easy pictures keep fewer tokens and hard ones more.

Not from a paper. The counts of the inner method's schedule hold on average over the pictures with which
`foveate.tune` calibrated the thresholds; on other pictures the mean may drift.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foveate._spelling import ADAPTIVE
from foveate.core.cut import Cut
from foveate.errors import SettingError
from foveate.methods.base import Method
from foveate.methods.follow import in_order
from foveate.methods.settings import MethodSetting, Share
from foveate.methods.stages import Arriving, LayerStage, LayerView, Shape, Stage

__all__ = ["METHOD", "AboveThreshold", "Adaptive", "above", "bounds"]


class Adaptive(Method):
    """Another method's cuts, each keeping the tokens whose score reaches a threshold.

    Attributes:
        inner: The method whose scores and counts are used. Its cuts must rank by a score, as those of V2Drop, FastV and
            PyramidDrop do.
        thresholds: One for each cut, in the unit of its scores.
        spread: Behind a cut there are at least 1 − spread and at most 1 + spread times the tokens that the schedule has
            there. This bounds how far the mean can drift on pictures unlike those of the calibration; 0 is the
            schedule itself.

    Raises:
        SettingError: If a cut does not rank by a score, or thresholds and cuts differ in number.
    """

    name = ADAPTIVE
    schedule: ClassVar[tuple[str, ...]] = ("thresholds",)

    inner: MethodSetting
    thresholds: tuple[float, ...]
    spread: Share = 0.1

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        stages = in_order(self.inner.stages(shape))
        cuts = [stage for stage in stages if stage.drops]
        for stage in cuts:
            if not isinstance(stage, LayerStage) or stage.score is None:
                raise SettingError(
                    f"A cut of {self.inner.name} has no score to compare with a threshold. Take a method that ranks "
                    "by scores before decoder layers: V2Drop, FastV or PyramidDrop."
                )
        if len(cuts) != len(self.thresholds):
            raise SettingError(f"{self.inner.name} has {len(cuts)} cuts; got {len(self.thresholds)} thresholds.")
        with_thresholds = {
            id(stage): self._with_threshold(cuts[: place + 1], threshold)
            for place, (stage, threshold) in enumerate(zip(cuts, self.thresholds, strict=True))
        }
        return tuple(with_thresholds.get(id(stage), stage) for stage in stages)

    def _with_threshold(self, cuts: Sequence[Stage], threshold: float) -> Stage:
        """The last of these cuts, decided by the threshold."""
        cut = AboveThreshold(tuple(cuts), threshold, self.spread)
        return dataclasses.replace(cuts[-1], score=None, keep=None, count=None, choose=cut)


@dataclasses.dataclass(frozen=True, eq=False)
class AboveThreshold:
    """A cut by threshold, as a stage's `choose`.

    Attributes:
        cuts: Those of the schedule up to and with this one.
        threshold: In the unit of the last one's scores.
        spread: See `Adaptive`.
    """

    cuts: tuple[Stage, ...]
    threshold: float
    spread: float

    def __call__(self, view: LayerView, _: int | None) -> Cut | None:
        count = self.scheduled(view.arriving)
        if count is None:
            return None
        least, most = bounds(count, len(view), self.spread)
        if least == len(view):
            return None
        return Cut.keep(above(self.scores(view), self.threshold, least, most))

    def scheduled(self, arriving: Arriving) -> int | None:
        """How many tokens the schedule keeps here, by itself; None where it drops none.

        It is counted from the tokens that entered the decoder: were it a share of those that an earlier threshold has
        left, the counts of a picture would be far apart behind a few cuts.
        """
        tokens = arriving.started
        for stage in self.cuts:
            before = tokens
            left = stage.left(dataclasses.replace(arriving, tokens=before))
            assert left is not None  # a stage with a score counts
            tokens = left
        return None if tokens == before else tokens

    def scores(self, view: LayerView) -> Tensor:
        """(tokens,) what the threshold is compared with."""
        score = self.cuts[-1].score
        assert score is not None
        return score(view)


def bounds(count: int, tokens: int, spread: float) -> tuple[int, int]:
    """Fewest and most of `tokens` that a cut may keep where its schedule keeps `count`.

    10 of 100 with a spread of 0.3 are 7 and 13.
    """
    least = max(1, math.floor((1 - spread) * count + 1e-9))
    most = math.ceil((1 + spread) * count - 1e-9)
    return min(least, count, tokens), min(tokens, most)


def above(scores: Tensor, threshold: float, least: int, most: int) -> Tensor:
    """Which tokens reach a threshold: at least the highest `least`, at most the highest `most`.

    Shapes: (tokens,) scores -> (tokens,) bool. Ties go to the lower index.
    """
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter(0, order, torch.arange(len(scores), device=scores.device))
    return (rank < most) & ((scores >= threshold) | (rank < least))


METHOD = Adaptive
