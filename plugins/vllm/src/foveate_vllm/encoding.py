"""While encoding: runs the images of a step through their stages, grouped by rate, in groups that fit."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, TypeVar

from torch import Tensor

from foveate.core.signals import TowerSignal
from foveate.core.views import TowerView
from foveate.hosts import Kept, Reducer
from foveate.hosts.reducer import Project
from foveate_vllm import guards
from foveate_vllm.processing import KEEP, RATE
from foveate_vllm.setting import Rate, Setting

__all__ = ["Asked", "OfRate", "by_rate", "entered_of", "groups", "reads_of", "ready", "rows_of"]

Rows = TypeVar("Rows", bound=Sized)
"""The rows of an image, with or without their places."""
OfRate = Callable[[Reducer, Sequence[int]], Sequence[Rows]]
"""Returns the rows of each image that enter the decoder, given the stages at a rate and the images that ask for it."""


class Asked:
    """What the requests of a step ask for their images.

    Args:
        kwargs: Arguments of `embed_multimodal`. foveate's own are removed from it.
        medium: "image" or "video".

    Attributes:
        counts: Rows of each image that have places in the prompt.
        rates: The rate of each image.
        video: Whether the images are videos.
    """

    def __init__(self, kwargs: dict[str, Any], medium: str = "image") -> None:
        self.video = medium == "video"
        counts, rates = kwargs.pop(KEEP[medium], None), kwargs.pop(RATE[medium], None)
        self.counts: list[int] = [] if counts is None else [int(count) for count in counts]
        self.rates: list[Rate] = [] if rates is None else [Rate.from_tensor(rate) for rate in rates]

    def __bool__(self) -> bool:
        return bool(self.counts)


def reads_of(setting: Setting, asked: Asked) -> tuple[TowerSignal, ...]:
    """Return the signals that the tower must provide for these requests. At a rate of 1 nothing is read."""
    return tuple(dict.fromkeys(signal for rate in asked.rates for signal in setting.stages(rate).reads))


def ready(kwargs: Mapping[str, Any]) -> list[Tensor] | None:
    """Return image embeddings of different lengths, which vLLM itself refuses in one step; None if there are none."""
    embeddings = kwargs.get("image_embeds")
    if isinstance(embeddings, list | tuple):
        return list(embeddings)
    return None


def rows_of(setting: Setting, asked: Asked, views: Sequence[TowerView], project: Project) -> list[Tensor]:
    """Return the rows of each image that enter the decoder, as many as were counted: (rows, width of the decoder).

    Args:
        setting: The server's setting.
        asked: What the requests ask.
        views: The tower's view of each image.
        project: The model's projector.
    """
    return [image.rows for image in entered_of(setting, asked, views, project)]


def entered_of(setting: Setting, asked: Asked, views: Sequence[TowerView], project: Project) -> list[Kept]:
    """Return `rows_of` with the sources of the rows."""

    def of_rate(stages: Reducer, images: Sequence[int]) -> Sequence[Kept]:
        return stages.enter([views[index] for index in images], project, asked.video)

    return by_rate(setting, asked, of_rate)


def by_rate(setting: Setting, asked: Asked, of_rate: "OfRate[Rows]") -> list[Rows]:
    """Return the rows of each image, computed rate by rate.

    Refuse a number of rows other than the one counted.
    """
    by_rate: dict[Rate, list[int]] = {}
    for index, rate in enumerate(asked.rates):
        by_rate.setdefault(rate, []).append(index)
    entering: dict[int, Rows] = {}
    for rate, images in by_rate.items():
        stages = setting.stages(rate)
        rows = of_rate(stages, images)
        for index, own in zip(images, rows, strict=True):
            guards.refuse_wrong_count(len(own), asked.counts[index])
            entering[index] = own
    return [entering[index] for index in range(len(entering))]


def groups(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Yield slices of consecutive images with at most `most` tokens before dropping, at least one image each.

    The scheduler counts tokens after dropping, so it may pass more images at once than the tower was profiled for.
    """
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            yield slice(start, index)
            start, total = index, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))
