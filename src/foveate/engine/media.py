"""Encode: the images and videos of a call, and the tag by which their features are known again."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import FeatureCall
from foveate.core.cut import Cut
from foveate.core.grid import Grid, cells_of, frames_of, grids_of
from foveate.engine import guards
from foveate.engine.program import Program
from foveate.families.base import Family
from foveate.families.placing import lengths_of, pieces_of

TAG = "_foveate"
"""The one attribute that foveate hangs on objects of others: on what a `get_*_features` call answers, and on each of
its features. `generate` encodes long before the decoder runs, and repeats features for beams; a tag goes along."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaTokens:
    """The vision tokens of one image or video.

    Attributes:
        length: How many there are.
        boxes: Computes where they look; called only when that is needed, as it may be costly.
        cut: What became of them in the tower or behind it, where that was looked at; the rows of a cut that changes
            anything are the first rows of the features.
        fixed: Which are no patches and always stay, as the CLS of a frame; they are not ranked (`Family.always_kept`).
        video: Whether it is a video.
        ran: Which of its rows ran in late blocks of the tower, segment by segment; empty where all did.
    """

    length: int
    boxes: Callable[[], Tensor | None]
    cut: Cut | None = None
    fixed: Sequence[int] = ()
    video: bool = False
    ran: Sequence[Cut] = ()

    def __deepcopy__(self, memo: Any) -> "MediaTokens":
        return self  # assisted decoding copies what `generate` has encoded; nothing changes it

    def __reduce__(self) -> Any:
        """Pickled as it is on the host, with its places worked out."""
        boxes = self.boxes()
        places = nowhere if boxes is None else partial(Tensor.cpu, boxes.cpu())
        return MediaTokens, (self.length, places, self.cut, self.fixed, self.video, tuple(self.ran))

    @property
    def free(self) -> int:
        """Its vision tokens that may be dropped."""
        return self.length - len(self.fixed)

    @property
    def frames(self) -> tuple[int, ...]:
        """Vision tokens of each of its frames, of which an image has one; empty where that is not known."""
        if not self.video:
            return (self.length,)
        boxes = self.boxes()
        if boxes is None:
            return ()
        return frames_of(boxes)

    @property
    def free_frames(self) -> tuple[int, ...]:
        """As `frames`, of those that may be dropped."""
        sizes = []
        for size, end in zip(self.frames, itertools.accumulate(self.frames), strict=True):
            # The frame's tokens are end − size to end.
            fixed = sum(end - size <= place < end for place in self.fixed)
            sizes.append(size - fixed)
        return tuple(sizes)

    @property
    def cells(self) -> tuple[Tensor, tuple[Grid, ...]]:
        """Frame, row and column of each of its free tokens, (free, 3) int64 on the host, and rows and columns of each
        frame; nothing of either where they are not known."""
        boxes = self.boxes()
        grids: tuple[Grid, ...] = ()
        cells: Tensor | None = None
        if boxes is not None:
            free = torch.ones(self.length, dtype=torch.bool)
            free[list(self.fixed)] = False
            boxes = boxes.cpu()[free]
            grids = grids_of(boxes)
            cells = cells_of(boxes, grids)
        if cells is None:
            return torch.zeros(0, 3, dtype=torch.int64), ()
        return cells, grids

    @property
    def started(self) -> int:
        """Rows of its free tokens that enter the decoder."""
        if self.cut is None:
            return self.free
        assert isinstance(self.cut.count, int)
        return self.cut.count

    @property
    def changed(self) -> bool:
        """Whether the tower changed its rows."""
        return self.cut is not None and not self.cut.stays_whole


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The tag of a whole answer of a `get_*_features` call.

    Attributes:
        media: Its images or videos, sample by sample where the prompt was seen, else as one sample.
        pieces: Entries of the answer that are of one image or video (see `Family.pieces`).
        features: Each image's, where an entry is an image: one tensor of all loses the tags of its parts.
    """

    media: Sequence[Sequence[MediaTokens]]
    pieces: int
    features: Sequence[Tensor]

    def __deepcopy__(self, memo: Any) -> "Encoded":
        return self


def nowhere() -> None:
    """The boxes of tokens of which it is not known where they look: None."""


def tag(
    family: Family,
    call: FeatureCall,
    output: Any,
    cuts: Sequence[Cut | None],
    prompt: Sequence[Sequence[int]] | None,
    ran: Sequence[Cut] = (),
) -> None:
    """Tag what a `get_*_features` call answered, and each image's features in it.

    Args:
        family: Knows the model.
        call: The call.
        output: The answer.
        cuts: What became of each image; empty where none was looked at.
        prompt: Vision tokens of each image of each sample, for a `tiled` family; None where no prompt was seen.
        ran: Which rows of the tower ran, segment by segment; empty where all did.
    """
    modality, arguments = call.modality, call.arguments
    pieces = family.pieces(modality, arguments)
    features = features_of(output, pieces)
    lengths = [len(tensor) for tensor in features]
    if family.tiled:
        lengths = lengths_in(prompt, sum(lengths_of(features)))
    # Worked out once for all images, when that is first needed: where grids are on the device it waits for them. The
    # trace holds this, so it must hold neither pixels nor the model.
    of_call = family.model.config, modality, family.arguments_kept(arguments), lengths
    boxes = cache(partial(type(family).boxes, *of_call))
    fixed = [()] * len(lengths) if family.tiled else family.fixed_tokens(*of_call)
    media = []
    ran_of: list[Sequence[Cut]] = [()] * len(lengths)
    if ran:  # else nothing is read of the device
        ran_of = _by_image(ran, lengths, type(family).tower_images(family.model.config, modality, arguments))
    for index, (length, cut) in enumerate(zip(lengths, cuts or [None] * len(lengths), strict=True)):
        own = partial(lambda index: boxes()[index], index)
        media.append(MediaTokens(length, own, cut, fixed[index], modality == "video", ran_of[index]))
    by_sample, counts = [media], [len(sample) for sample in prompt or ()]
    if sum(counts) == len(media):
        images = iter(media)
        by_sample = [list(itertools.islice(images, count)) for count in counts]
    setattr(output, TAG, Encoded(by_sample, pieces, features))
    if family.tiled:
        return
    for tensor, image in zip(features, media, strict=True):
        setattr(tensor, TAG, image)


def _by_image(ran: Sequence[Cut], lengths: Sequence[int], counts: Sequence[int] | None) -> list[Sequence[Cut]]:
    """The segments of each image: as many as pictures were encoded for it, where the family says so; one; or by its
    share of the vision tokens. Of none, where that does not add up."""
    if counts is None and len(ran) == len(lengths):
        counts = [1] * len(lengths)
    elif counts is None or sum(counts) != len(ran):
        counts = [len(ran) * length // max(1, sum(lengths)) for length in lengths]
    if sum(counts) != len(ran):
        counts = [0] * len(lengths)
    segments = iter(ran)
    return [tuple(itertools.islice(segments, count)) for count in counts]


def lengths_in(prompt: Sequence[Sequence[int]] | None, total: int) -> list[int]:
    """Vision tokens of each image of a call that makes `total`; of one, if no prompt was seen."""
    lengths = list(itertools.chain(*prompt or ()))
    if sum(lengths) == total:
        return lengths
    return [total]


def image_lengths(
    family: Family, modality: str, mask: Tensor | None, ids: Tensor | None, pieces: Sequence[int] = ()
) -> list[list[int]] | None:
    """Vision tokens of each image of each sample where only the prompt tells; None where it need not, or was not seen.

    Args:
        family: Knows whether it must.
        modality: "image" or "video".
        mask: Where the vision tokens are, (samples, columns) bool; None before that is said: read off the ids.
        ids: The prompt's ids, (samples, columns).
        pieces: Tokens of each piece in which the features came; none before there are any.
    """
    if family.tiled and mask is None and ids is not None:
        mask = ids == family.placeholder(modality)  # type: ignore[assignment]
    if not family.tiled or mask is None:
        return None
    return family.image_lengths(mask, ids, pieces)


def prompt_lengths(
    family: Family, modality: str, ids: Tensor | None
) -> Callable[[Sequence[int]], list[list[int]] | None]:
    """`image_lengths` of a prompt, called with the pieces of its features; the host waits once for each answer."""
    lengths = cache(partial(image_lengths, family, modality, None, ids))
    return lambda pieces: lengths(tuple(pieces) if family.gathers else ())


def tagged_media(
    output: Any, lengths: Sequence[Sequence[int]] | None, program: Program, family: Family, modality: str
) -> list[MediaTokens]:
    """The images whose features these are.

    Features that were made outside the context have no tags: of them only the length is known.

    Args:
        output: What a `get_*_features` call answered, maybe repeated for beams since.
        lengths: Vision tokens of each image of each sample, for families whose features come in other pieces.
        program: Says whether the tower must have been seen to run.
        family: Knows which tokens always stay.
        modality: "image" or "video".
    """
    encoded = getattr(output, TAG, None)
    if not isinstance(encoded, Encoded):
        encoded = None
    if lengths is None:
        features = features_of(output, 1 if encoded is None else encoded.pieces)
        sizes = [len(tensor) for tensor in features]
        tags = [getattr(tensor, TAG, None) for tensor in features]
        if encoded is not None and any([image is None for image in tags]):
            originals = list(itertools.chain(*encoded.media))
            places = _which(features, encoded.features)
            tags = [None if place is None else originals[place] for place in places]
    else:
        sizes = list(itertools.chain(*lengths))
        samples = [] if encoded is None else encoded.media
        beams = len(lengths) // max(1, len(samples))  # generate repeats a sample's rows: a a b b for two beams
        tagged = [media for media in samples for _ in range(beams)]
        tags = [None] * len(sizes)
        if [[image.length for image in media] for media in tagged] == [list(sample) for sample in lengths]:
            tags = list(itertools.chain(*tagged))
    media = []
    for length, image in zip(sizes, tags, strict=True):
        if image is None:
            if program.encodes is not None:
                guards.refuse_foreign_features(program.method)
            fixed: Sequence[int] = ()
            if not family.tiled:  # tiled families have tokens of patches alone
                fixed = family.always_kept(family.model.config, length)
            image = MediaTokens(length, nowhere, fixed=fixed, video=modality == "video")
        media.append(image)
    return media


def features_of(output: Any, pieces: int) -> list[Tensor]:
    """The features of each image or video in what a `get_*_features` call answered."""
    parts = pieces_of(output)
    if pieces == 1:
        return parts
    # With two pieces an image, parts 0 1 2 3 are the images 0 1 and 2 3.
    return [torch.cat(parts[start : start + pieces]) for start in range(0, len(parts), pieces)]


def _which(features: Sequence[Tensor], originals: Sequence[Tensor]) -> list[int | None]:
    """Which of the features that were encoded each of these is: one tensor, repeated for beams, has lost its tags."""
    if len(features) == len(originals):
        return list(range(len(originals)))
    pairs, equal = [], []
    for place, tensor in enumerate(features):
        for index, original in enumerate(originals):
            if tensor.shape == original.shape and tensor.device == original.device:
                pairs.append((place, index))
                equal.append((tensor == original).all())
    if not pairs:
        return [None] * len(features)
    answers = torch.stack(equal).tolist()  # the host waits once
    first: dict[int, int] = {}
    for (place, index), same in zip(pairs, answers, strict=True):
        if same:
            first.setdefault(place, index)
    return [first.get(place) for place in range(len(features))]
