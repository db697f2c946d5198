"""Encode: what a stage sees of the images in the tower, those alike together, and what becomes of each."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foveate.contract.stages import Stage
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.merge import average
from foveate.core.signals import Cls, Deepstack, Features, Signal, TowerAttention, TowerSignal
from foveate.core.tensors import Tensors
from foveate.core.views import Arriving, ImageView, TowerView
from foveate.engine.program import NotesOf, named

__all__ = ["Ask", "ImageTokens", "PickOf", "ask_alike", "image_view", "kind_of", "with_counts"]

PickOf = Callable[[Sequence[Callable[[], Tensor]]], Tensor]
"""Of functions that each make the tensor of one image, the tensor of the image that is looked at."""


@dataclass(slots=True, eq=False)
class ImageTokens:
    """One image in the vision tower or just behind it, and what has become of its tokens so far.

    Attributes:
        view: What the family shows.
        patches: What became of patches: in the tower, or behind the projector where the tower cannot lose any.
        pooled: The same, where signals are still those of all patches.
        done: What image stages have made of the rows that were left then.
    """

    view: TowerView
    patches: Cut = field(init=False)
    pooled: Cut | None = None
    done: Cut = field(init=False)

    def __post_init__(self) -> None:
        view = self.view
        self.patches = Cut.stay(len(view))
        if view.merge is not None:
            self.patches = Cut.merge(view.merge.source, view.features, view.merge.parent)
        self.done = Cut.stay(len(view))

    @property
    def entered(self) -> int:
        """Vision tokens the image will have had; as many as are shown where the family does not say."""
        return self.view.entered or len(self.view)

    @property
    def rows(self) -> Tensor:
        """The rows that are left, (rows, width)."""
        return self.done.rows_left(self.patches.rows_left(self.view.features))

    @property
    def untouched(self) -> bool:
        """Whether its tokens are all as they came."""
        return self.patches.stays_whole and self.done.stays_whole

    @property
    def can_pool(self) -> bool:
        """Whether it has not been through a stage inside the tower, and stands on a grid."""
        return self.view.merge is None and not self.view.early and self.view.grid is not None

    @property
    def grid(self) -> Grid:
        """Rows and columns of its tokens, where they are on one."""
        assert self.view.grid is not None
        return self.view.grid

    def pool(self, cut: Cut | None) -> None:
        """Take what a stage inside the tower has made of it."""
        if cut is not None:
            self.patches = self.pooled = cut
            self.done = Cut.stay(len(cut.source))

    def take(self, cut: Cut | None, stage: Stage) -> None:
        """Take what an image stage has made of it."""
        if cut is not None:
            self.done = self.done.then(named(cut, stage))

    @property
    def cut(self) -> Cut | None:
        """What became of its tokens, with the rows that are left; None if nothing did."""
        cut = self.patches.then(self.done)
        if cut.stays_whole and not cut.notes:
            return None
        if cut.stays_whole:
            return cut
        return cut.with_rows(cut.rows_left(self.view.features))

    @property
    def source(self) -> Tensor:
        """The token that each row stands for."""
        return self.patches.then(self.done).source

    @property
    def kind(self) -> Hashable:
        """What is the same in images that are alike."""
        view, notes = self.view, tuple(sorted(self.done.notes))
        cuts = tuple((cut.count, cut.stays_whole, cut.rows is None) for cut in (self.patches, self.done))
        counts = (self.entered, view.reserved)
        signals = (view.early, self.pooled is None, view.cls is None, view.made is None)
        return (*kind_of(view.features), view.grid, view.grids, *counts, *signals, *cuts, *notes)

    def lacks(self, signal: Signal) -> bool:
        """Whether its tower has no such signal, of those that it may lack."""
        shown = {Cls: self.view.cls, Deepstack: self.view.deepstack, Features: self.view.made}
        return shown.get(type(signal), self.view) is None

    def signal(self, signal: Signal) -> Tensor:
        """What the tower shows of each row: (rows,) attention, (rows, any) of others; of the CLS one row."""
        if isinstance(signal, Cls):
            assert self.view.cls is not None
            return self.view.cls
        if isinstance(signal, Deepstack):
            assert self.view.deepstack is not None
            values = self.view.deepstack()
            return values if self.untouched else values[self.source.clamp(min=0)]
        if isinstance(signal, Features):
            assert self.view.made is not None
            values = self.view.made()
        else:
            assert isinstance(signal, TowerSignal)
            values = self.view.read(signal)  # attention as keys of size 1
        if self.pooled is not None:  # the mean over a token's patches
            values = average(values, self.pooled)
        if not self.done.stays_whole:  # a row that a stage has made has the value of its source
            values = values[self.done.source.clamp(min=0)]
        if isinstance(signal, TowerAttention):
            return values[:, 0]
        return values


def kind_of(rows: Tensor) -> tuple[Hashable, ...]:
    """What is the same in rows that can be stacked."""
    return tuple(rows.shape), rows.dtype, rows.device


def image_view(
    stage: Stage, images: Sequence[ImageTokens], tensors: Tensors, pick: PickOf, video: bool = False
) -> ImageView:
    """What a stage sees of one of some images alike.

    Args:
        stage: Says what it reads.
        images: The images.
        tensors: The `rows` and `notes` of the one that is looked at.
        pick: Makes a tensor of that one.
        video: Whether they are videos.
    """
    image, rows = images[0], tensors["rows"]
    view, untouched = image.view, image.untouched
    signals: dict[Signal, Callable[[], Tensor]] = {}
    for signal in stage.reads:
        if not image.lacks(signal):
            signals[signal] = partial(pick, [partial(other.signal, signal) for other in images])
    # Once tokens have been dropped or merged, the rows are on no grid, and say which tokens they stand for.
    grid, grids = view.grid, view.grids
    tokens: Callable[[], Tensor] | None = None
    if not untouched:
        grid, grids = None, ()
        tokens = partial(pick, [partial(getattr, other, "source") for other in images])
    return ImageView(
        rows,
        grid=grid,
        grids=grids,
        merged=image.patches.rows is not None or image.done.rows is not None,
        tokens=tokens,
        arriving=Arriving(len(rows), image.entered, len(rows), view.reserved, grids, video=video),
        notes=NotesOf(tensors["notes"], stage),
        signals=signals,
    )


class Ask(Protocol):
    """Asks a stage about one of some images that are alike.

    It gets the places of these images, the tensors of the one image, and a way to pick further tensors of it.
    """

    def __call__(self, places: Sequence[int], tensors: Tensors, pick: PickOf, /) -> Cut | None: ...


def ask_alike(ask: Ask, inputs: Sequence[Tensors], kinds: Sequence[Hashable]) -> list[Cut | None]:
    """The answers of all images, those that look alike asked together.

    Args:
        ask: The question.
        inputs: Tensors of each image by name (or by a name of a name).
        kinds: What is the same in images that can be asked together.
    """
    alike: dict[Hashable, list[int]] = {}
    for place, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(place)
    answers: list[Cut | None] = [None] * len(inputs)
    for places in alike.values():
        cuts = _together(partial(ask, places), [inputs[place] for place in places])
        for place, cut in zip(places, cuts, strict=True):
            answers[place] = cut
    return answers


def _together(ask: Callable[[Tensors, PickOf], Cut | None], inputs: Sequence[Tensors]) -> list[Cut | None]:
    """The answers of images alike, whose tensors can be stacked."""
    if len(inputs) == 1:
        return [ask(inputs[0], lambda made: made[0]())]
    cuts: list[Cut | None] = []

    def of_image(place: Tensor, tensors: Tensors) -> Tensors:
        def pick(made: Sequence[Callable[[], Tensor]]) -> Tensor:
            stacked = torch.stack([make() for make in made])
            # Under vmap `place` is no number, so it is an index tensor: (images, …) to (1, …) to (…).
            return stacked[place.expand(1)][0]

        cut = ask(tensors, pick)
        cuts.append(cut)
        return {} if cut is None else cut.tensors()

    stacked = _stacked(inputs)
    device = _device_of(stacked)
    answers = torch.func.vmap(of_image)(torch.arange(len(inputs), device=device), stacked)
    (cut,) = cuts  # vmap calls `of_image` once for all images
    if cut is None:
        return [None] * len(inputs)
    return [cut.with_tensors(part) for part in _unstacked(answers, len(inputs))]


def _device_of(tensors: Tensors) -> torch.device:
    """Where the first of them is."""
    value = next(iter(tensors.values()))
    if isinstance(value, Tensor):
        return value.device
    return _device_of(value)


def _stacked(inputs: Sequence[Tensors]) -> Tensors:
    """Tensors of each image by name, with the images in front."""
    stacked: Tensors = {}
    for name, value in inputs[0].items():
        values = [tensors[name] for tensors in inputs]
        stacked[name] = torch.stack(values) if isinstance(value, Tensor) else _stacked(values)
    return stacked


def _unstacked(tensors: Tensors, count: int) -> list[Tensors]:
    """Tensors by name, with the images in front, image by image."""
    parts: list[Tensors] = [{} for _ in range(count)]
    for name, value in tensors.items():
        values = value.unbind() if isinstance(value, Tensor) else _unstacked(value, count)
        for part, value_of_image in zip(parts, values, strict=True):
            part[name] = value_of_image
    return parts


def with_counts(cuts: Sequence[Cut | None], kinds: Sequence[Hashable]) -> list[Cut | None]:
    """The same cuts with counts that the host knows: the device is asked once for all.

    A merge that was put off is made now where it leaves fewer rows; else it becomes None.

    Args:
        cuts: Of images.
        kinds: What is the same in images that can be asked together.
    """
    unknown = [(place, cut) for place, cut in enumerate(cuts) if cut is not None and isinstance(cut.count, Tensor)]
    if not unknown:
        return list(cuts)
    counts: list[int] = torch.stack([torch.as_tensor(cut.count) for _, cut in unknown]).tolist()
    left = {place: count for (place, _), count in zip(unknown, counts, strict=True)}
    merging = [(place, cut) for place, cut in unknown if cut.put_off and left[place] < cut.arriving]
    made = _made([cut for _, cut in merging], [kinds[place] for place, _ in merging])
    answers = list(cuts)
    for place, cut in unknown:
        answers[place] = None if cut.put_off else cut.first(left[place])
    for (place, _), cut in zip(merging, made, strict=True):
        answers[place] = cut.first(left[place])
    return answers


def _made(cuts: Sequence[Cut], kinds: Sequence[Hashable]) -> list[Cut]:
    """Merges that were put off, those of images alike together."""

    def make(places: Sequence[int], tensors: Tensors, _: PickOf) -> Cut:
        return cuts[places[0]].with_tensors(tensors).made()

    made = ask_alike(make, [cut.tensors() for cut in cuts], kinds)
    return [cut for cut in made if cut is not None]
