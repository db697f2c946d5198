"""Encode: stages on an image's tokens in and behind the vision tower of a transformers model. For hosts with their own
decoder see `hosts.reducer`.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import FeatureCall
from foveate.contract import follow
from foveate.contract.stages import Stage
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.merge import average
from foveate.core.signals import Cls, Deepstack, Features, Resource, Signal, TowerAttention, TowerSignal
from foveate.core.tensors import alike
from foveate.core.views import Arriving, ImageView, PatchView, PixelView, TowerView
from foveate.engine.media_tokens import PromptLengths, lengths_in
from foveate.engine.program import Program, notes_of
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.thinning import running_thin


@dataclass(slots=True, eq=False)
class ImageTokens:
    """One image in the vision tower or right behind it, and the cuts of its tokens so far.

    Attributes:
        view: What the family exposes of the tower.
        resources: Resources passed to `drop(resources=...)`, by name.
        patches: The cut of patches: in the tower, or behind the projector if the tower cannot drop any.
        done: The cut by image stages of the rows left by `patches`.
    """

    view: TowerView
    resources: Mapping[str, Any]
    patches: Cut = field(init=False)
    done: Cut = field(init=False)

    def __post_init__(self) -> None:
        view = self.view
        self.patches = Cut.stay(len(view))
        if view.merge is not None:
            self.patches = Cut.merge(view.merge.source, view.features, view.merge.parent)
        self.done = Cut.stay(len(view))

    @property
    def entered(self) -> int:
        """Vision tokens that the image would enter the model with; those in the view if the family does not say."""
        return self.view.entered or len(self.view)

    @property
    def rows(self) -> Tensor:
        """The rows that are left, (rows, width)."""
        return self.done.rows_left(self.patches.rows_left(self.view.features))

    @property
    def cut(self) -> Cut | None:
        """The cut of its tokens, including the rows that are left; None if nothing changed."""
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

    def lacks(self, signal: Signal) -> bool:
        """Return whether the tower lacks this signal. Only some signals can be lacking."""
        shown = {Cls: self.view.cls, Deepstack: self.view.deepstack, Features: self.view.made}
        return shown.get(type(signal), self.view) is None

    def signal(self, signal: Signal) -> Tensor:
        """Return a signal of each row: (rows,) for attention, (rows, any) for others, one row for the CLS."""
        if isinstance(signal, Cls):
            assert self.view.cls is not None
            return self.view.cls
        if isinstance(signal, Deepstack):
            assert self.view.deepstack is not None
            return self.view.deepstack()[self.source.clamp(min=0)]
        if isinstance(signal, Features | Resource):
            # If the family does not expose the projected features, use its own.
            if self.view.made is None:
                values = self.view.features
            else:
                values = self.view.made()
            if isinstance(signal, Resource):
                values = self.resources[signal.name].features(values)
        else:
            assert isinstance(signal, TowerSignal)
            values = self.view.read(signal)  # attention comes as (patches, 1)
        if self.view.merge is None and not self.patches.stays_whole:  # still those of all patches: a token has the mean
            values = average(values, self.patches)
        if not self.done.stays_whole:  # a row made by a stage takes the value of its source
            values = values[self.done.source.clamp(min=0)]
        if isinstance(signal, TowerAttention):
            return values[:, 0]
        return values


def image_view(stage: Stage, image: ImageTokens, video: bool) -> ImageView:
    """Build the view that a stage gets of an image, or of a video."""
    view, rows = image.view, image.rows
    video = video if view.video is None else view.video
    signals = {signal: partial(image.signal, signal) for signal in stage.reads if not image.lacks(signal)}
    # After tokens were dropped or merged, the rows are not on a grid; they report the tokens they stand for instead.
    grid, grids = view.grid, view.grids
    tokens: Callable[[], Tensor] | None = None
    if not (image.patches.stays_whole and image.done.stays_whole):
        grid, grids = None, ()
        tokens = lambda: image.source  # noqa: E731
    return ImageView(
        rows,
        grid=grid,
        grids=grids,
        merged=image.patches.rows is not None or image.done.rows is not None,
        tokens=tokens,
        arriving=Arriving(len(rows), image.entered, len(rows), view.reserved, grids, video=video),
        notes=notes_of(image.done.notes, stage),
        signals=signals,
    )


def count_masks(cuts: Sequence[Cut | None]) -> list[Cut | None]:
    """Replace masks by indices, and cuts that leave all rows unchanged by None. One host sync counts all masks."""
    masks = [cut for cut in cuts if cut is not None and cut.stays is not None]
    counts = iter(torch.stack([torch.as_tensor(cut.count) for cut in masks]).tolist() if masks else ())
    return [cut if cut is None or cut.stays is None else cut.first(next(counts)) for cut in cuts]


# -- models of transformers ---------------------------------------------------------------------------------------


class TowerReducer:
    """Runs a method's stages on what a family exposes of its tower, image by image.

    Args:
        program: The stages.
        prompt: Returns the vision tokens of each image of each sample; None if no prompt was seen.
        video: Whether the images are videos.

    Attributes:
        early: Whether a stage works inside the tower.
        reads: The signals that stages read from the tower.
        ran: Which rows of the tower ran, if some were removed before it and restored behind it.
    """

    def __init__(self, program: Program, prompt: PromptLengths | None = None, video: bool = False) -> None:
        self._program = program
        self._prompt = prompt
        self._video = video
        self.early = program.tower is not None
        self.block = 1 if program.tower is None else program.tower.block
        self.ran: list[Cut] = []
        signals = itertools.chain.from_iterable(stage.reads for stage in program.images)
        self.reads = tuple(dict.fromkeys(signal for signal in signals if isinstance(signal, TowerSignal)))

    def lengths(self, total: int, pieces: Sequence[int] = ()) -> list[int]:
        """Return the vision tokens of each image of a call that makes `total`. Without a prompt: one image."""
        return lengths_in(self._prompt and self._prompt(pieces), total)

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """Return the token grids of an image's frames or views after the pixel stages."""
        tokens = sum(rows * columns for rows, columns in grids)
        return follow.coarse_grids(self._program.stages, Arriving(tokens, entered, tokens, reserved, tuple(grids)))

    def leave(self, views: Sequence[PixelView]) -> list[Cut | None]:
        """Choose from the pixels which tokens of each image or video the tower shall make."""
        (stage,) = self._program.pixels

        return _dropping([stage.cut(view) for view in views])

    def merge_early(self, images: Sequence[Tensor], grid: Grid) -> list[Cut | None]:
        """Choose which patches of each image are merged inside the tower.

        Args:
            images: (patches, width) each, in raster order.
            grid: Rows and columns of the patches.
        """
        stage = self._program.tower
        assert stage is not None
        return _dropping([stage.cut(PatchView(rows, grid)) for rows in images])

    def first(self, blocks: int) -> int:
        """Return the block before which rows are removed, of `blocks` that are read."""
        assert self._program.thin is not None
        return self._program.thin.first(blocks)

    def thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut | None]:
        """Choose which rows of each segment run, and which of these stands in for each other row.

        Segments of one size, such as a film's frames, take as few kernels as one, unless the stage is another author's,
        which may read values.
        """
        stage = self._program.thin
        assert stage is not None
        kinds = [(rows.shape, grid) for rows, grid in zip(segments, grids, strict=True)]
        cuts: dict[int, Cut | None] = {}
        for places in alike(kinds if stage.author is None else range(len(kinds))):
            rows, grid = [segments[place] for place in places], grids[places[0]]
            own = _cut_together(stage, rows, grid) if len(rows) > 1 else [stage.cut(PatchView(rows[0], grid))]
            cuts.update(zip(places, own, strict=True))
        return [cuts[place] for place in range(len(segments))]

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """Run the image stages on each image's tokens, without newlines."""
        images = [ImageTokens(view, self._program.resources) for view in views]
        if self._program.tower is not None:
            # If the tower itself cannot drop tokens, the stage inside it works behind the projector.
            late = [image for image in images if image.view.merge is None and not image.view.early]
            cuts = _dropping([self._program.tower.cut(self._patches(image)) for image in late])
            for image, cut in zip(late, cuts, strict=True):
                if cut is not None:
                    image.patches = cut
                    image.done = Cut.stay(len(cut.source))
        for stage in self._program.images:
            cuts = count_masks([stage.cut(image_view(stage, image, self._video)) for image in images])
            for image, cut in zip(images, cuts, strict=True):
                if cut is not None:
                    image.done = image.done.then(cut.with_owner(stage.owner))
        return [image.cut for image in images]

    def _patches(self, image: ImageTokens) -> PatchView:
        """Return an image's tokens behind the projector as the view of a stage inside the tower."""
        view = image.view
        arriving = Arriving(len(view), image.entered, len(view), view.reserved, view.grids, video=self._video)
        return PatchView(view.features, view.grid, arriving=arriving)


def _cut_together(stage: Stage, segments: Sequence[Tensor], grid: Grid | None) -> Sequence[Cut | None]:
    """Let a stage that makes no rows of its own cut segments of one size at once."""
    count = stage.left(PatchView(segments[0], grid).arriving)
    if count is None or count >= len(segments[0]):
        return [None] * len(segments)

    def cut(rows: Tensor) -> tuple[Tensor, Tensor]:
        result = stage.cut(PatchView(rows, grid))
        assert result is not None
        return result.source, result.parent

    return list(map(Cut.join, *torch.func.vmap(cut)(torch.stack(list(segments)))))


def _dropping(cuts: Sequence[Cut | None]) -> list[Cut | None]:
    """Replace cuts that leave as many rows as arrived by None."""
    return [None if cut is None or cut.count == cut.arriving else cut for cut in count_masks(cuts)]


def encode_media(
    family: Family, program: Program, call: FeatureCall, prompt: PromptLengths
) -> tuple[Any, list[Cut | None], list[Cut]]:
    """Run a `get_*_features` call, and let the stages before the decoder reduce each image's tokens.

    Args:
        family: The model's family.
        program: The method's stages.
        call: The call.
        prompt: Returns the vision tokens of each image of each sample.

    Returns:
        The original's output, with each image's rows in the first places of its features. The cut of each image. And
        which of the tower's rows ran, one entry per segment, if some did not.
    """
    # By the place of the first cut: shrink the image, skip patches, cut inside the tower or before the projector, or
    # cut behind the projector.
    ways = {
        "pixels": family.encode_smaller,
        "subset": family.encode_subset,
        "tower": family.encode,
        "projector": family.encode_projected,
        "thin": lambda run, *_: (run(), []),
    }
    assert program.encodes is not None
    reducer = TowerReducer(program, prompt, video=call.modality == "video")
    thinning: AbstractContextManager[list[Cut]] = nullcontext([])
    if program.thin is not None:
        thinning = running_thin(family.tower_parts(call.modality, call.run, call.arguments), reducer)
    try:
        with thinning as ran:
            output, cuts = ways[program.encodes](call.run, call.modality, call.arguments, reducer)
    except (NotImplementedError, RuntimeError) as error:
        if program.encodes == "pixels" and any(weight.is_meta for weight in family.core.parameters()):
            raise UnsupportedError(
                "The vision tower's weights are offloaded, so transformers cannot interpolate its position embeddings "
                "for a smaller picture. Keep the tower in memory in the device_map, or use AveragePool."
            ) from error
        raise
    # The rows are now in the features. The trace holds the cuts, so these must not hold the features.
    without_rows = []
    for cut in cuts:
        if cut is not None and not cut.stays_whole:
            cut = Cut(cut.arriving, cut.count, {"source": cut.source, "parent": cut.parent}, cut.notes)
        without_rows.append(cut)
    return output, without_rows, ran or reducer.ran
