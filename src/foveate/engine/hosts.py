"""Encode: runs the stages before the decoder for a host with its own decoder, such as vLLM.

The host passes in its tower's output, projects rows, and puts the rows that are left into a shorter prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foveate.core.cut import Cut, look_up
from foveate.core.signals import Hidden
from foveate.core.views import TowerView
from foveate.engine.cutting import SampleRows, decide
from foveate.engine.encode import TowerReducer, count_masks
from foveate.engine.left import Left
from foveate.engine.media_tokens import MediaTokens
from foveate.engine.program import Program
from foveate.engine.samples import read_samples
from foveate.errors import UnsupportedError
from foveate.families.placing import rows_left
from foveate.families.vision import PictureLayout

Project = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Projects the rows of each image, (rows, width of the tower) -> (rows, width of the decoder)."""


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """The rows of one image that enter the decoder. Its length is that of `rows`.

    Attributes:
        rows: (rows, width of the decoder), in the order in which they enter.
        source: The token whose position each row has, (rows,) int64; −1 for none.
    """

    rows: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.rows)


def enter(stages: Program, views: Sequence[TowerView], project: Project, video: bool = False) -> list[Entered]:
    """Return the rows of each image that enter the decoder.

    Args:
        stages: The stages. Those before and inside the tower are the host's to run or refuse.
        views: The tower's output for each image.
        project: The host's projector. If a tower merges behind its projector, return the rows unchanged.
        video: Whether the images are videos.

    Raises:
        UnsupportedError: If a stage reads a signal that only a running decoder has.
    """
    reducer = TowerReducer(stages, video=video)
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
    """Run the stages before decoder layer 0 on the rows that the tower left, and return the rows of each image.

    Args:
        stages: The stages.
        sizes: Vision tokens of each image.
        cuts: The cut of each image in the tower; None: unchanged.
        rows: The rows that are left, (rows, width of the decoder) each.
    """
    arrived = [Cut.stay(size) if cut is None else cut for size, cut in zip(sizes, cuts, strict=True)]
    sources = [cut.source.to(own.device) for cut, own in zip(arrived, rows, strict=True)]

    def look(hidden: Tensor, cut: Cut) -> Cut | None:
        # Treat the image as a sequence of its own: the image's rows, followed by text.
        media = [MediaTokens(cut.arriving, PictureLayout, cut if len(hidden) < cut.arriving else None)]
        (sample,) = read_samples([(torch.arange(cut.arriving + 1)[None] < cut.arriving, media)], None)
        left = replace(Left.of(0, sample, hidden.device), source=cut.source.to(hidden.device), sizes=(len(hidden),))
        left.notes |= cut.notes
        decision = decide(SampleRows(0, left, hidden), stages.entering)
        return None if decision is None else decision.cut

    later: Sequence[Cut | None] = [None] * len(rows)
    signals = [signal for stage in stages.entering for signal in stage.reads if not isinstance(signal, Hidden)]
    if signals:  # before its first layer, a host's decoder only exposes what enters it
        raise UnsupportedError(
            f"{stages.method.name} reads {signals[0]!r} before decoder layer 0, which only foveate's own engine "
            "computes. Use it on transformers."
        )
    if stages.entering:
        later = count_masks([look(own, cut) for own, cut in zip(rows, arrived, strict=True)])
    entered = []
    for own, source, last in zip(rows, sources, later, strict=True):
        stands_for = source
        if last is not None:
            stands_for = look_up(last.source, source)
        entered.append(Entered(rows_left(own, last), stands_for))
    return entered
