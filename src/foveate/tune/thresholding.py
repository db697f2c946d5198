"""Thresholds of `Adaptive`, calibrated so that pictures keep as many tokens on average as the schedule keeps."""

import bisect
import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.engine.session import drop
from foveate.methods.adaptive import AboveThreshold, Adaptive, bounds
from foveate.methods.base import Method
from foveate.methods.follow import in_order, reads_text
from foveate.methods.settings import MethodSetting
from foveate.methods.stages import Shape, Stage
from foveate.registry import family_for
from foveate.tune.samples import About, Sample
from foveate.tune.sharing import Shared

__all__ = ["adaptive", "refuse_without_scores", "spent"]

NEVER = 1e30


def adaptive(model: Any, method: Method, pictures: Sequence[About], spread: float = 0.1) -> Adaptive:
    """A method with thresholds in the place of its counts, cut by cut, at the same mean cost.

    Args:
        model: Of transformers.
        method: Its cuts rank by scores.
        pictures: To calibrate with, without labels. On others the mean drifts by what these leave open: with counts
            that differ by 7 % from picture to picture, 50 pictures leave 1 %.
        spread: See `Adaptive`.

    Raises:
        SettingError: If a cut of the method has no score.
    """
    shape = Shape(len(family_for(model).layers))
    cuts = [stage for stage in in_order(method.stages(shape)) if stage.drops]
    thresholds = [NEVER] * len(cuts)
    refuse_without_scores(method, shape.depth)
    samples = list(_samples(method, shape, pictures))
    shared = Shared(model)
    for place in range(len(cuts)):
        so_far = Adaptive(inner=method, thresholds=tuple(thresholds), spread=spread)
        thresholds[place] = _threshold(_scores(model, shared, so_far, place, samples), spread)
    return Adaptive(inner=method, thresholds=tuple(thresholds), spread=spread)


def refuse_without_scores(method: Method, depth: int) -> None:
    """Refuse a method whose cuts do not rank by a score.

    Raises:
        SettingError: If one does not.
    """
    cuts = sum(stage.drops for stage in method.stages(Shape(depth)))
    Adaptive(inner=method, thresholds=(NEVER,) * cuts).stages(Shape(depth))


def spent(model: Any, method: Method, pictures: Sequence[About]) -> list[float]:
    """Mean vision tokens that a decoder layer processes, for each picture (or question, where it has a say)."""
    shape = Shape(len(family_for(model).layers))
    means = []
    for _, sample in _samples(method, shape, pictures):
        with drop(model, method) as trace, torch.inference_mode():
            model(**{**sample.inputs, "use_cache": False})
        means.append(trace.retention[0] * sample.vision_tokens)
    return means


def _samples(method: Method, shape: Shape, pictures: Sequence[About]) -> Iterator[tuple[str, Sample]]:
    """(its picture's key, sample): one a picture, or all where the question decides what is kept."""
    every = reads_text(method.stages(shape))
    for about in pictures:
        for sample in about.samples if every else about.samples[:1]:
            yield about.key, sample


# -- one cut ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What one sample's tokens scored at a cut, highest first, and how many the schedule keeps."""

    scores: NDArray[np.float64]
    count: int


def _scores(
    model: Any, shared: Shared, method: Adaptive, place: int, samples: Sequence[tuple[str, Sample]]
) -> list[_Seen]:
    """What the tokens of every sample score at the cut of this place, behind the cuts before it."""
    seen: list[_Seen] = []
    watched = _Watched(inner=method.inner, thresholds=method.thresholds, spread=method.spread, place=place)
    watched.to(seen)
    for key, sample in samples:
        with shared.on(method, key), drop(model, watched), torch.inference_mode():
            model(**{**sample.inputs, "use_cache": False})
    return seen


class _Watched(Adaptive):
    """`Adaptive` that tells what one cut scored."""

    place: int = 0
    inner: MethodSetting
    thresholds: tuple[float, ...]

    def to(self, seen: list[_Seen]) -> None:
        """Where to tell it."""
        self._set(_seen=seen)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        stages = list(super().stages(shape))
        cuts = [index for index, stage in enumerate(stages) if stage.drops]
        stage = stages[cuts[self.place]]
        assert isinstance(stage.choose, AboveThreshold)
        watch = _Watch(stage.choose, self._seen)  # type: ignore[attr-defined]
        stages[cuts[self.place]] = dataclasses.replace(stage, choose=watch, host=True)
        return tuple(stages)


@dataclasses.dataclass(frozen=True)
class _Watch:
    """A cut that tells what it scored. It must run on real values, so its stage is a `host` one."""

    cut: AboveThreshold
    seen: list[_Seen]

    def __call__(self, view: Any, count: int | None) -> Any:
        ordered = np.sort(self.cut.scores(view).double().cpu().numpy())[::-1]
        scheduled = self.cut.scheduled(view.arriving)
        self.seen.append(_Seen(ordered, len(ordered) if scheduled is None else scheduled))
        return self.cut(view, count)


def _threshold(seen: Sequence[_Seen], spread: float) -> float:
    """The threshold with which the cut keeps as many tokens on average as its schedule.

    It is searched among the scores that occur, not among numbers: attention spans twenty powers of ten.
    """
    target = statistics.fmean(one.count for one in seen)
    values = np.unique(np.concatenate([one.scores for one in seen]))

    def mean(place: int) -> float:
        return statistics.fmean(_kept(one, values[place], spread) for one in seen)

    first = bisect.bisect_left(range(len(values) - 1), True, key=lambda place: mean(place) <= target)
    if first and mean(first - 1) - target < target - mean(first):
        first -= 1
    # Halfway to the next score: at a score itself, rounding would decide, and a batch could differ from its samples.
    return float(values[first] + values[max(0, first - 1)]) / 2


def _kept(one: _Seen, threshold: float, spread: float) -> int:
    """How many tokens of a sample reach a threshold, within the bounds."""
    least, most = bounds(one.count, len(one.scores), spread)
    return int(np.clip((one.scores >= threshold).sum(), least, most))
