"""Encode: stages in and behind the vision tower reduce each image's tokens, on their way to the decoder."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

from torch import Tensor

from foveate.contract.stages import Stage
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.signals import TowerSignal
from foveate.core.tensors import Tensors
from foveate.core.views import PatchView, TowerView
from foveate.engine import guards
from foveate.engine.images import Ask, ImageTokens, PickOf, ask_alike, image_view, kind_of, with_counts
from foveate.engine.media import lengths_in
from foveate.engine.program import Program
from foveate.families.base import Family

__all__ = ["TowerReducer", "encode"]


def encode(
    family: Family,
    program: Program,
    modality: str,
    run: Callable[..., Any],
    arguments: dict[str, Any],
    prompt: Sequence[Sequence[int]] | None = None,
) -> tuple[Any, list[Cut | None]]:
    """Run a `get_*_features` call, and let the stages before the decoder reduce each image's tokens.

    Args:
        family: Knows the model.
        program: The method's stages.
        modality: "image" or "video".
        run: Calls the original, with the arguments given here in the place of its own.
        arguments: The call's arguments by name.
        prompt: Vision tokens of each image of each sample, for a `tiled` family; None where no prompt was seen.

    Returns:
        What the original answers, each image's rows in the first places of its features; and what became of each.
    """
    # Where the first cut is: a smaller picture, inside the tower or before the projector, or behind the projector.
    ways = {"pixels": family.encode_smaller, "tower": family.encode, "projector": family.encode_projected}
    assert program.encodes is not None
    reducer = TowerReducer(program, prompt, video=modality == "video")
    try:
        output, cuts = ways[program.encodes](run, modality, arguments, reducer)
    except (NotImplementedError, RuntimeError) as error:
        if program.encodes == "pixels":
            guards.refuse_offloaded_tower(family, error)
        raise
    return output, [_without_rows(cut) for cut in cuts]


def _without_rows(cut: Cut | None) -> Cut | None:
    """A cut whose rows are in the features now. The trace holds it, so it must not hold the features."""
    if cut is None or cut.stays_whole:
        return cut
    return Cut(cut.arriving, cut.count, source=cut.source, parent=cut.parent, notes=cut.notes)


# -- reducing -----------------------------------------------------------------------------------------------------


class TowerReducer:
    """Runs a method's stages on what a family shows of its tower; images that are alike go through a stage together.

    Args:
        program: The stages.
        prompt: Vision tokens of each image of each sample, where a prompt was seen.
        video: Whether the images are videos.

    Attributes:
        early: Whether a stage stands inside the tower.
        reads: What the stages read of the tower.
    """

    def __init__(self, program: Program, prompt: Sequence[Sequence[int]] | None, video: bool = False) -> None:
        self._program = program
        self._prompt = prompt
        self._video = video
        self.early = program.tower is not None
        signals = itertools.chain.from_iterable(stage.reads for stage in program.images)
        self.reads = tuple(dict.fromkeys(signal for signal in signals if isinstance(signal, TowerSignal)))

    def lengths(self, total: int) -> list[int]:
        """Vision tokens of each image of a call that makes `total`; of one, if no prompt was seen."""
        return lengths_in(self._prompt, total)

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become in front of the tower."""
        return self._program.coarsen(grids, entered, reserved)

    def merge_early(self, images: Sequence[Tensor], grid: Grid) -> list[Cut | None]:
        """Which patches of each image become one after the tower's first layer.

        Args:
            images: (patches, width) each, in raster order.
            grid: Their rows and columns.
        """
        return self._merged(images, [grid] * len(images))

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """What becomes of each image's tokens on their way out of the tower, newlines apart."""
        images = [ImageTokens(view) for view in views]
        # Where the tower itself cannot lose tokens, the stage inside it works behind the projector.
        late = [image for image in images if self.early and image.can_pool]
        pooled = self._merged([image.rows for image in late], [image.grid for image in late])
        for image, cut in zip(late, pooled, strict=True):
            image.pool(cut)
        for stage in self._program.images:
            for image, cut in zip(images, self._ask(stage, images), strict=True):
                image.take(cut, stage)
        return [image.cut for image in images]

    def _merged(self, images: Sequence[Tensor], grids: Sequence[Grid]) -> list[Cut | None]:
        """Cuts of the stage inside the tower, of patches (or tokens) on these grids; None where none is merged."""

        def ask(places: Sequence[int], tensors: Tensors, pick: PickOf) -> Cut | None:
            assert self._program.tower is not None
            return self._program.tower.cut(PatchView(tensors["rows"], grids[places[0]]))

        kinds = [(grid, *kind_of(rows)) for rows, grid in zip(images, grids, strict=True)]
        cuts = self._asked(ask, [{"rows": rows} for rows in images], kinds)
        return [_if_it_merges(cut) for cut in cuts]

    def _ask(self, stage: Stage, images: Sequence[ImageTokens]) -> list[Cut | None]:
        """What an image stage makes of each image."""

        def ask(places: Sequence[int], tensors: Tensors, pick: PickOf) -> Cut | None:
            return stage.cut(image_view(stage, [images[place] for place in places], tensors, pick, self._video))

        inputs = [{"rows": image.rows, "notes": dict(image.done.notes)} for image in images]
        return self._asked(ask, inputs, [image.kind for image in images])

    def _asked(self, ask: Ask, inputs: Sequence[Tensors], kinds: Sequence[Hashable]) -> list[Cut | None]:
        """A stage's cuts, with counts that the host knows."""
        if not self._program.together:  # every image is a kind of its own
            kinds = range(len(inputs))
        return with_counts(ask_alike(ask, inputs, kinds), kinds)


def _if_it_merges(cut: Cut | None) -> Cut | None:
    """The cut; None if it leaves as many rows as arrived."""
    if cut is None or cut.count == cut.arriving:
        return None
    return cut
