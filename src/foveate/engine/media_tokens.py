"""Encode: the images and videos of a call, and the tag that identifies their features later."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import FeatureCall
from foveate.core.cut import Cut
from foveate.core.grid import Grid, frames_of
from foveate.engine import guards
from foveate.engine.program import Program
from foveate.families.base import Family
from foveate.families.placing import lengths_of, pieces_of
from foveate.families.vision import PictureLayout

TAG = "_foveate"
"""The only attribute that foveate sets on objects it does not own: on the output of a `get_*_features` call and on
each of its features. `generate` encodes before the decoder runs and repeats features for beams. A tag survives both."""


PromptLengths = Callable[[Sequence[int]], Sequence[Sequence[int]] | None]
"""Returns the vision tokens of each image of each sample, from the sizes of the features' pieces."""


@dataclass(frozen=True, slots=True, eq=False)
class MediaTokens:
    """The vision tokens of one image or video.

    Attributes:
        length: How many there are.
        layout: Returns its grids and where they are. Called only when needed, because it may be slow.
        cut: What a stage in the tower or behind it did to them, if any looked at them. If the cut changes anything, its
            rows are the first rows of the features.
        fixed: Indices of tokens that are not patches and always stay, such as a frame's CLS. They are not ranked
            (`Family.keeps_beside`).
        video: Whether it is a video.
        ran: Which of its rows ran in late blocks of the tower, one entry per segment; empty if all did.
    """

    length: int
    layout: Callable[[], PictureLayout]
    cut: Cut | None = None
    fixed: Sequence[int] = ()
    video: bool = False
    ran: Sequence[Cut] = ()

    def __deepcopy__(self, memo: Any) -> "MediaTokens":
        return self  # assisted decoding copies what `generate` has encoded; nothing changes it

    def __reduce__(self) -> Any:
        """Pickle with boxes computed, and without the pixels that they may come from."""
        layout, boxes = PictureLayout(), self.boxes()
        if boxes is not None:
            layout = replace(self.layout(), place=partial(Tensor.type_as, boxes[self.layout().in_grids]))
        return MediaTokens, (self.length, partial(replace, layout), self.cut, self.fixed, self.video, tuple(self.ran))

    def boxes(self) -> Tensor | None:
        """The box of the image that each token covers. None if unknown."""
        return self.layout().boxes

    @property
    def free(self) -> int:
        """Number of its vision tokens that may be dropped."""
        return self.length - len(self.fixed)

    @property
    def frames(self) -> tuple[int, ...]:
        """Vision tokens of each of its frames; an image has one frame. Empty if unknown."""
        if not self.video:
            return (self.length,)
        boxes = self.boxes()
        if boxes is None:
            return ()
        return frames_of(boxes)

    @property
    def free_frames(self) -> tuple[int, ...]:
        """`frames`, counting only tokens that may be dropped."""
        sizes = []
        for size, end in zip(self.frames, itertools.accumulate(self.frames), strict=True):
            # The frame's tokens are end − size to end.
            fixed = sum(end - size <= place < end for place in self.fixed)
            sizes.append(size - fixed)
        return tuple(sizes)

    @property
    def cells(self) -> tuple[Tensor, tuple[Grid, ...]]:
        """Frame, row and column of each of its free tokens, (free, 3) int64 on the host, and rows and columns of each
        frame. Both are empty if unknown."""
        layout = self.layout()
        cells = layout.cells
        if self.fixed:  # these are the tokens beside the grids
            cells = cells[layout.in_grids]
        return cells, layout.grids or ()

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
class EncodedMedia:
    """The tag of the whole output of a `get_*_features` call.

    Attributes:
        media: Its images or videos, per sample if the prompt was seen, else as one sample.
        pieces: How many entries of the output belong to one image or video (see `Family.pieces`).
        features: The features of each image. Needed if the output was joined into one tensor, which loses the tags.
    """

    media: Sequence[Sequence[MediaTokens]]
    pieces: int
    features: Sequence[Tensor]

    def __deepcopy__(self, memo: Any) -> "EncodedMedia":
        return self


def tag(
    family: Family,
    call: FeatureCall,
    output: Any,
    cuts: Sequence[Cut | None],
    prompt: Sequence[Sequence[int]] | None,
    ran: Sequence[Cut],
) -> None:
    """Tag the output of a `get_*_features` call, and each image's features in it.

    Args:
        family: The model's family.
        call: The call.
        output: The call's output.
        cuts: The cut of each image; empty if no stage looked at any.
        prompt: Vision tokens of each image of each sample, for a `tiled` family; None if no prompt was seen.
        ran: Which rows of the tower ran, one entry per segment; empty if all did.
    """
    modality, arguments = call.modality, call.arguments
    pieces = family.pieces(modality, arguments)
    features = features_of(output, pieces)
    lengths = [len(tensor) for tensor in features]
    if family.tiled:
        lengths = lengths_in(prompt, sum(lengths_of(features)))
    # Made once for all images, when first needed: grids on the device cost a host sync. The trace holds
    # this function, so it must not hold pixels or the model.
    of_call = family.model.config, modality, family.arguments_kept(arguments), lengths
    pictures = cache(partial(type(family).pictures, *of_call))
    fixed: list[Sequence[int]] = [()] * len(lengths)
    if family.keeps_beside:
        fixed = [picture.beside for picture in pictures()]
    media = []
    ran_of: list[Sequence[Cut]] = [()] * len(lengths)
    if ran:  # otherwise avoid the host sync
        ran_of = _by_image(ran, lengths, [picture.tower_images or 1 for picture in pictures()])
    for index, (length, cut) in enumerate(zip(lengths, cuts or [None] * len(lengths), strict=True)):
        own = partial(lambda index: pictures()[index], index)
        media.append(MediaTokens(length, own, cut, fixed[index], modality == "video", ran_of[index]))
    by_sample, counts = [media], [len(sample) for sample in prompt or ()]
    if sum(counts) == len(media):
        images = iter(media)
        by_sample = [list(itertools.islice(images, count)) for count in counts]
    setattr(output, TAG, EncodedMedia(by_sample, pieces, features))
    if family.tiled:
        return
    for tensor, image in zip(features, media, strict=True):
        setattr(tensor, TAG, image)


def _by_image(ran: Sequence[Cut], lengths: Sequence[int], counts: Sequence[int]) -> list[Sequence[Cut]]:
    """Divide the tower's segments among the images: by the family's counts, or in proportion to their tokens.

    If that does not add up, every image gets none.
    """
    if sum(counts) != len(ran):
        counts = [len(ran) * length // max(1, sum(lengths)) for length in lengths]
    if sum(counts) != len(ran):
        counts = [0] * len(lengths)
    segments = iter(ran)
    return [tuple(itertools.islice(segments, count)) for count in counts]


def lengths_in(prompt: Sequence[Sequence[int]] | None, total: int) -> list[int]:
    """Return the vision tokens of each image of a call that makes `total`. Without a prompt: one image."""
    lengths = list(itertools.chain(*prompt or ()))
    if sum(lengths) == total:
        return lengths
    return [total]


def image_lengths(
    family: Family, modality: str, mask: Tensor | None, ids: Tensor | None, pieces: Sequence[int] = ()
) -> list[list[int]] | None:
    """Return the vision tokens of each image of each sample if only the prompt tells them. None if not, or not seen.

    Args:
        family: The model's family; says whether the prompt is needed.
        modality: "image" or "video".
        mask: Where the vision tokens are, (samples, columns) bool; None: find them in the ids.
        ids: The prompt's ids, (samples, columns).
        pieces: Tokens of each piece in which the features came; empty before there are any.
    """
    if family.tiled and mask is None and ids is not None:
        mask = ids == family.placeholder(modality)  # type: ignore[assignment]
    if not family.tiled or mask is None:
        return None
    return family.image_lengths(mask, ids, pieces)


def prompt_lengths(
    family: Family, modality: str, ids: Tensor | None
) -> Callable[[Sequence[int]], list[list[int]] | None]:
    """Return `image_lengths` of a prompt as a function of the features' pieces. Cached: one host sync per answer."""
    lengths = cache(partial(image_lengths, family, modality, None, ids))
    return lambda pieces: lengths(tuple(pieces) if family.gathers else ())


def tagged_media(
    output: Any, lengths: Sequence[Sequence[int]] | None, program: Program, family: Family, modality: str
) -> list[MediaTokens]:
    """Return the images that these features belong to.

    Features made outside the context have no tags; only their length is known.

    Args:
        output: Output of a `get_*_features` call, maybe repeated for beams since.
        lengths: Vision tokens of each image of each sample, for families whose features come in other pieces.
        program: Says whether features without a tag must be refused.
        family: Says which tokens always stay.
        modality: "image" or "video".
    """
    encoded = getattr(output, TAG, None)
    if not isinstance(encoded, EncodedMedia):
        encoded = None
    if lengths is None:
        features = features_of(output, 1 if encoded is None else encoded.pieces)
        sizes = [len(tensor) for tensor in features]
        tags = [getattr(tensor, TAG, None) for tensor in features]
        if encoded is not None and any(image is None for image in tags):
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
            (picture,) = family.pictures(family.model.config, modality, {}, [length])
            fixed = picture.beside if family.keeps_beside else ()
            image = MediaTokens(length, PictureLayout, fixed=fixed, video=modality == "video")
        media.append(image)
    return media


def features_of(output: Any, pieces: int) -> list[Tensor]:
    """Return the features of each image or video in the output of a `get_*_features` call."""
    parts = pieces_of(output)
    if pieces == 1:
        return parts
    # With two pieces per image, parts 0 1 2 3 are the images 0 1 and 2 3.
    return [torch.cat(parts[start : start + pieces]) for start in range(0, len(parts), pieces)]


def _which(features: Sequence[Tensor], originals: Sequence[Tensor]) -> list[int | None]:
    """Match features to the encoded originals by value. A tensor repeated for beams has lost its tags."""
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
    answers = torch.stack(equal).tolist()  # one host sync
    first: dict[int, int] = {}
    for (place, index), same in zip(pairs, answers, strict=True):
        if same:
            first.setdefault(place, index)
    return [first.get(place) for place in range(len(features))]
