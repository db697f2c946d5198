"""Encode: stages in and behind the vision tower reduce each image's tokens, on their way to the decoder."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from foveate.contract.stages import Stage
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.signals import TowerSignal
from foveate.core.tensors import Tensors
from foveate.core.views import PatchView, TowerView
from foveate.engine import guards
from foveate.engine.forward import Forward
from foveate.engine.images import Ask, ImageTokens, PickOf, ask_alike, image_view, kind_of, with_counts
from foveate.engine.media import Encoded, MediaTokens, features_of, media_of, nowhere, tag
from foveate.engine.program import Program
from foveate.families.base import Family

__all__ = ["TowerReducer", "encode", "image_lengths", "media_in"]


def encode(
    family: Family,
    program: Program,
    modality: str,
    run: Callable[..., Any],
    arguments: dict[str, Any],
    prompt: Sequence[Sequence[int]] | None = None,
) -> Any:
    """Run a `get_*_features` call, and tag every image's features with where its tokens look and what was cut.

    Args:
        family: Knows the model.
        program: The method's stages.
        modality: "image" or "video".
        run: Calls the original, with the arguments given here in the place of its own.
        arguments: The call's arguments by name.
        prompt: Vision tokens of each image of each sample, for a `tiled` family; None where no prompt was seen.

    Returns:
        What the original answers, each image's rows in the first places of its features.
    """
    reducer = TowerReducer(program, prompt, video=modality == "video")
    cuts: list[Cut | None] = []
    if program.encodes is None:
        output = run()
    else:
        output, cuts = _reduced(family, program.encodes, modality, run, arguments, reducer)
    if not hasattr(output, "pooler_output"):  # a tuple, for a user with return_dict=False; the model uses none
        return output
    pieces = family.pieces(modality, arguments)
    features = features_of(output, pieces)
    lengths = [len(tensor) for tensor in features]
    if family.tiled:
        lengths = reducer.lengths(sum(tensor.shape[:-1].numel() for tensor in features))
    places = _Boxes(family, modality, family.remembered(arguments), lengths)
    media = []
    for index, (length, cut) in enumerate(zip(lengths, cuts or [None] * len(lengths), strict=True)):
        boxes = partial(places.boxes, index)
        media.append(MediaTokens(length, boxes, cut, _always_kept(family, length), modality == "video"))
    counts = [len(sample) for sample in prompt or ()]
    tag(output, Encoded(_by_sample(media, counts), pieces, features, family.tiled))
    return output


def _reduced(
    family: Family,
    where: str,
    modality: str,
    run: Callable[..., Any],
    arguments: dict[str, Any],
    reducer: "TowerReducer",
) -> tuple[Any, list[Cut | None]]:
    """What the original answers, reduced; and what became of each image."""
    # Where the first cut is: a smaller picture, inside the tower or before the projector, or behind the projector.
    ways = {"pixels": family.encode_smaller, "tower": family.encode, "projector": family.encode_projected}
    try:
        output, cuts = ways[where](run, modality, arguments, reducer)
    except (NotImplementedError, RuntimeError) as error:
        if where == "pixels":
            guards.refuse_offloaded_tower(family, error)
        raise
    return output, [_without_rows(cut) for cut in cuts]


def _without_rows(cut: Cut | None) -> Cut | None:
    """A cut whose rows are in the features now. The trace holds it, so it must not hold the features."""
    if cut is None or cut.stays_whole:
        return cut
    return Cut(cut.arriving, cut.count, source=cut.source, parent=cut.parent, notes=cut.notes)


def _always_kept(family: Family, length: int) -> Sequence[int]:
    """Which of an image's tokens are no patches and always stay; tiled families have none."""
    if family.tiled:
        return ()
    return family.always_kept(family.model.config, length)


def _by_sample(media: Sequence[MediaTokens], counts: Sequence[int]) -> list[list[MediaTokens]]:
    """Images sample by sample, with so many each; as one sample where the counts do not add up."""
    if sum(counts) != len(media):
        return [list(media)]
    images = iter(media)
    return [list(itertools.islice(images, count)) for count in counts]


class _Boxes:
    """Computes where the tokens of a call's images look, when that is first needed.

    The trace holds this object, so it must not hold pixels.
    """

    def __init__(self, family: Family, modality: str, arguments: dict[str, Any], lengths: Sequence[int]) -> None:
        self._family = family
        self._modality = modality
        self._arguments = arguments
        self._lengths = lengths

    def boxes(self, index: int) -> Tensor | None:
        """Of one image: see `Family.boxes`."""
        return self._of_call[index]

    @cached_property
    def _of_call(self) -> list[Tensor | None]:
        """Of all images; worked out once, since where grids are on the device it waits for them."""
        return self._family.boxes(self._modality, self._arguments, self._lengths)


def image_lengths(family: Family, mask: Tensor | None, ids: Tensor | None) -> list[list[int]] | None:
    """Vision tokens of each image of each sample where only the prompt tells; None where it need not, or was not seen.

    Args:
        family: Knows whether it must.
        mask: Where the vision tokens are, (samples, columns) bool; None before that is said: read off the ids.
        ids: The prompt's ids, (samples, columns).
    """
    if not family.tiled or (mask is None and ids is None):
        return None
    if mask is None:
        mask = placed(family, "image", ids)
    return family.image_lengths(mask, ids)


def placed(family: Family, modality: str, ids: Tensor | None) -> Tensor:
    """Where a prompt has vision tokens, (samples, columns) bool."""
    places: Tensor = ids == getattr(family.model.config, f"{modality}_token_id")
    return places


def media_in(forward: Forward, program: Program, family: Family, modality: str, mask: Tensor) -> list[MediaTokens]:
    """The images (or videos) of a forward's prompt, by the tags of their features.

    Args:
        forward: What was encoded.
        program: Whether it must have been reduced here.
        family: Knows the model.
        modality: "image" or "video".
        mask: Where their tokens are, (samples, columns) bool.

    Raises:
        UnsupportedError: If the method reduces in the tower and these features did not come through it here.
    """
    if modality not in forward.encoded:
        return []
    lengths = forward.image_lengths if modality == "image" else None
    if lengths is None:
        lengths = image_lengths(family, mask, forward.ids)
    return tagged_media(forward.encoded[modality], lengths, program, family, modality)


def tagged_media(
    output: Any, lengths: Sequence[Sequence[int]] | None, program: Program, family: Family, modality: str
) -> list[MediaTokens]:
    """The images whose features these are.

    Features that were made outside the context have no tags: of them only the length is known.
    """
    media = []
    for length, image in media_of(output, lengths):
        if image is None:
            if program.encodes is not None:
                guards.refuse_foreign_features(program.method)
            fixed = _always_kept(family, length)
            image = MediaTokens(length, nowhere, fixed=fixed, video=modality == "video")
        media.append(image)
    return media


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
        lengths = list(itertools.chain(*self._prompt or ()))
        if sum(lengths) == total:
            return lengths
        return [total]

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
