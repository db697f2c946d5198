"""Encode, for a host with a decoder of its own: from what its tower shows of images to the rows that enter the decoder.

The host says what its tower shows, projects rows, and puts what is left into a prompt that is shorter by as much.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.signals import Hidden
from foveate.core.tensors import Tensors
from foveate.core.views import TowerView
from foveate.engine.cutting import SampleRows, decide
from foveate.engine.encode import TowerReducer, cuts_of, kind_of
from foveate.engine.media import MediaTokens, nowhere
from foveate.engine.program import Program
from foveate.engine.samples import Pick, Sample
from foveate.errors import UnsupportedError
from foveate.families.placing import rows_left

__all__ = [
    "Entered",
    "Project",
    "before_decoder",
    "enter",
]

Project = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Rows of each image, (rows, width of the tower), as the projector makes them: (rows, width of the decoder)."""


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """What enters the decoder of one image; its length is that of `rows`.

    Attributes:
        rows: (rows, width of the decoder), in the order in which they enter.
        source: The token whose position each has, (rows,) int64; −1 for none.
    """

    rows: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def enter(stages: Program, views: Sequence[TowerView], project: Project) -> list[Entered]:
    """The rows of each image that enter the decoder. Images alike go through a stage together.

    Args:
        stages: What drops. Stages in front of the tower and inside it are the host's to refuse or to run.
        views: What the tower shows of each image.
        project: The host's projector; a tower that merges behind it gives its rows back as they are.

    Raises:
        UnsupportedError: If a stage reads a signal that only a running decoder has.
    """
    refuse_decoder_signals(stages)
    reducer = TowerReducer(stages)
    if stages.encodes == "tower":
        cuts = reducer.reduce(views)
        rows = project([rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)])
    else:
        rows = project([view.features for view in views])
        cuts = [None] * len(views)
    if stages.encodes == "projector":
        views = [replace(view, features=features) for view, features in zip(views, rows, strict=True)]
        cuts = reducer.reduce(views)
        rows = [rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)]
    sizes = [view.entered or len(view) for view in views]
    return before_decoder(stages, sizes, cuts, rows)


def before_decoder(
    stages: Program, sizes: Sequence[int], cuts: Sequence[Cut | None], rows: Sequence[Tensor]
) -> list[Entered]:
    """The rows of each image that the stages before decoder layer 0 leave of those that the tower has left.

    Args:
        stages: What drops.
        sizes: Vision tokens of each image.
        cuts: What became of them in the tower; None: nothing.
        rows: What is left, (rows, width of the decoder) each.
    """
    images = [_Entering(size, cut, own) for size, cut, own in zip(sizes, cuts, rows, strict=True)]
    if not stages.entering:
        return [Entered(image.rows, image.source) for image in images]
    refuse_decoder_signals(stages)
    return _entered(stages, images)


def refuse_decoder_signals(stages: Program) -> None:
    """A host's own decoder shows nothing before its first layer but what enters it."""
    for stage in stages.entering:
        for signal in stage.reads:
            if not isinstance(signal, Hidden):
                raise UnsupportedError(
                    f"{stages.method.name} reads {signal!r} before decoder layer 0, which only foveate's own engine "
                    "computes. Use it on transformers."
                )


@dataclass(frozen=True, slots=True, eq=False)
class _Entering:
    """One image in front of decoder layer 0.

    Attributes:
        entered: Its vision tokens.
        cut: What became of its tokens so far; None: nothing.
        rows: What is left, (rows, width of the decoder).
    """

    entered: int
    cut: Cut | None
    rows: Tensor

    @property
    def source(self) -> Tensor:
        """The token that each row stands for."""
        if self.cut is None:
            return torch.arange(len(self.rows), device=self.rows.device)
        return self.cut.source.to(self.rows.device)

    @property
    def tensors(self) -> Tensors:
        """What stages look at."""
        notes = {} if self.cut is None else dict(self.cut.notes)
        return {"rows": self.rows, "source": self.source, "notes": notes}

    @property
    def kind(self) -> Hashable:
        """What is the same in images that are alike."""
        notes = () if self.cut is None else tuple(sorted(self.cut.notes))
        return (*kind_of(self.rows), self.entered, *notes)

    def sample(self) -> Sample:
        """A sequence that has this image and text behind it."""
        count = len(self.rows)
        stays = Cut(self.entered, count, source=self.source)
        media = MediaTokens(self.entered, nowhere, stays if count < self.entered else None)
        vision = torch.arange(self.entered)
        text = torch.tensor([self.entered])
        return Sample(
            live=self.entered + 1,
            text=text,
            vision=vision,
            runs=torch.zeros_like(vision),
            media=[media],
            sizes=(self.entered,),
            text_after=(1,),
            text_from=(1,),
        )


def _entered(stages: Program, images: Sequence[_Entering]) -> list[Entered]:
    """What the stages before layer 0 leave of each image's rows."""
    kinds: Sequence[Hashable] = [image.kind for image in images]
    if not stages.together:  # every image is a kind of its own
        kinds = range(len(images))

    def look(places: Sequence[int], tensors: Tensors, _: Pick) -> Cut | None:
        return _decision(stages, images[places[0]], tensors)

    cuts = cuts_of(look, [image.tensors for image in images], kinds)
    left = []
    for image, cut in zip(images, cuts, strict=True):
        if cut is None:
            left.append(Entered(image.rows, image.source))
            continue
        # A row has the token of the row that it stands for, or none.
        source = torch.where(cut.source < 0, cut.source, image.source[cut.source.clamp(min=0)])
        left.append(Entered(rows_left(image.rows, cut), source))
    return left


def _decision(stages: Program, image: _Entering, tensors: Tensors) -> Cut | None:
    """What the stages leave of one of some images alike."""
    hidden, source, notes = tensors["rows"], tensors["source"], tensors["notes"]
    assert isinstance(hidden, Tensor)
    assert isinstance(source, Tensor)
    assert isinstance(notes, dict)
    rows = SampleRows(
        layer=0,
        sample=image.sample(),
        source=source,
        sizes=(len(hidden),),
        notes=dict(notes),
        read=lambda: hidden,
        reader=None,
    )
    decision = decide(rows, stages.entering)
    return None if decision is None else decision.cut
