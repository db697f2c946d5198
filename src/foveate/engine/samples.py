"""Begin: the samples of a call as the host knows them, read from the prompt and its media."""

import itertools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.views import Arriving
from foveate.engine.media import MediaTokens
from foveate.errors import UnsupportedError

Array = np.ndarray[Any, np.dtype[Any]]
NOTHING = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence of the batch as it enters the decoder; its tensors are on the host.

    Attributes:
        live: Columns that are no padding.
        text: Columns of its other live tokens, (…,) int64, ascending; and of padding whose output is read.
        vision: Columns of its vision tokens, (entered,) int64, ascending; those always kept are text.
        runs: Which run of columns each of these is in, (entered,) int64, ascending; a run has one image.
        media: Its images, in order.
        sizes: Vision tokens of each, or of each frame where the method goes by frame.
        text_after: How many of `text` that are no padding come after the last token of each of these.
        text_from: How many come after the first: more where text stands between its tokens.
        frames: `sizes` if the method goes by frame.
        starts: Whether the call's first column is one of its vision tokens.
        ends: Whether the call's last column is.
        ordinals: Which of all its vision tokens `vision` are, (entered,) int64, and which always stay; None if none
            does.
        cells: Frame, row and column of each of `vision`, (entered, 3) int64 (see `Cells`); None if no stage reads them.
        grids: The grids of each image, where a stage reads them.
        words: Columns of `text` that are no padding, (…,) int64, ascending.
    """

    live: int
    text: Tensor
    vision: Tensor
    runs: Tensor
    media: list[MediaTokens]
    sizes: tuple[int, ...]
    text_after: tuple[int, ...]
    text_from: tuple[int, ...]
    frames: tuple[int, ...] | None = None
    starts: bool = False
    ends: bool = False
    ordinals: tuple[Tensor, Tensor] | None = None
    cells: Tensor | None = None
    grids: tuple[tuple[Grid, ...], ...] = ()
    words: Tensor = NOTHING

    @property
    def fixed(self) -> int:
        """Vision tokens that always stay."""
        if self.ordinals is None:
            return 0
        _, fixed = self.ordinals
        return len(fixed)

    @property
    def vision_tokens(self) -> int:
        """All its vision tokens."""
        return len(self.vision) + self.fixed

    @property
    def rows(self) -> int:
        """Rows of the decoder's first layer if nothing is dropped."""
        return len(self.text) + len(self.vision)

    @property
    def entered_sizes(self) -> tuple[int, ...]:
        """Vision tokens that may be dropped, of each image (or frame)."""
        return self.frames or tuple([image.free for image in self.media])

    @property
    def started_sizes(self) -> tuple[int, ...]:
        """Rows of each that enter the decoder."""
        return self.frames or tuple([image.started for image in self.media])

    @property
    def parted(self) -> bool:
        """Whether text stands between the tokens of an image."""
        return bool(len(self.runs)) and int(self.runs[-1]) + 1 > len(self.media)

    @property
    def layout(self) -> Hashable:
        """What is known of the sample as a value: alike for prompts that differ in what they show and say alone."""
        values: list[Hashable] = [self.entered_sizes, self.started_sizes]
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value.numpy().tobytes()
            elif field.name == "ordinals" and value is not None:
                value = tuple([part.numpy().tobytes() for part in value])
            if field.name != "media":
                values.append(value)
        return tuple(values)

    def padded(self, span: int, pads: int) -> "Sample":
        """This sample of `span` columns with so much more text behind it."""
        more = torch.arange(span, span + pads)
        return replace(
            self,
            live=self.live + pads,
            text=torch.cat((self.text, more)),
            words=torch.cat((self.words, more)),
            text_after=tuple([count + pads for count in self.text_after]),
            text_from=tuple([count + pads for count in self.text_from]),
            ends=False,
        )

    def words_behind(self, image: int) -> Tensor:
        """Columns of the text behind an image (or frame), (words,) int64, ascending."""
        return self.words[len(self.words) - self.text_after[image] :]


@dataclass(frozen=True, slots=True)
class Begun:
    """Rows of a sample that decoder layer 0 has processed: what entered, less what was cut before it.

    Attributes:
        count: All of them.
        sizes: Of each image (or frame); None where only the device knows.
        opening: Whose stages cut there; these go on counting from what entered (see `follow.opening`).
    """

    count: int
    sizes: tuple[int, ...] | None
    opening: frozenset[tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are ranked together: of a sample, of an image or of a frame.

    Attributes:
        start, stop: Which of the sample's rows they are.
        entered: Vision tokens they were when they entered the model.
        started: Rows of these that entered the decoder.
        text_after: Whether text stands behind them; an entry an image where they are of several.
        image: Which of the sample's images (or frames) it is, −1 where it is all of them: the text behind all is that
            behind the last.
    """

    start: int
    stop: int
    entered: int
    started: int
    text_after: tuple[bool, ...]
    image: int = -1

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """Its rows as a slice."""
        return slice(self.start, self.stop)

    @property
    def arriving(self) -> Arriving:
        """What a stage's count is made of."""
        return Arriving(len(self), self.entered, self.started)


def sample_unit(sample: Sample, count: int) -> Unit:
    """All `count` rows that are left of a sample."""
    text_after = tuple([after > 0 for after in sample.text_after])
    return Unit(0, count, sum(sample.entered_sizes), sum(sample.started_sizes), text_after)


def image_units(sample: Sample, sizes: Sequence[int]) -> list[Unit]:
    """The rows of each image (or frame), of which there are so many left."""
    if len(sizes) == 1:
        return [sample_unit(sample, sizes[0])]
    ends = itertools.accumulate(sizes)
    images = zip(ends, sizes, sample.entered_sizes, sample.started_sizes, sample.text_after, strict=True)
    units = []
    for image, (end, size, entered, started, text) in enumerate(images):
        units.append(Unit(end - size, end, entered, started, (text > 0,), image))
    return units


def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[MediaTokens]]],
    live: Tensor | None,
    by_frame: bool = False,
    reads_cells: bool = False,
) -> list[Sample]:
    """The samples of a call, from its vision masks: one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is no padding; None if all are live.
        by_frame: Whether their `sizes` are those of frames.
        reads_cells: Whether a stage reads the cells that tokens stand in.
    """
    # One number a column: bit 0 says that it is live, bit 1 + n that it belongs to the n-th modality.
    flags = sum([mask.to(torch.int16) << (bit + 1) for bit, (mask, _) in enumerate(masks)])
    first_mask = masks[0][0]
    if live is None:
        alive = torch.ones_like(first_mask)
    else:
        alive = live.to(first_mask.device) != 0
    table = (flags + alive).cpu().numpy()
    lives = table % 2 == 1
    owners = np.full(table.shape, -1)  # each column's image
    fixed = np.zeros(table.shape, bool)  # whether it always stays
    media: list[MediaTokens] = []
    for bit, (_, images) in enumerate(masks):
        placed = (table >> (bit + 1)) % 2 == 1
        # Two images of 2 and 3 tokens: 0 0 1 1 1, in the order in which their columns come.
        lengths = [image.length for image in images]
        owners[placed] = np.repeat(np.arange(len(images)), lengths) + len(media)
        if any([image.fixed for image in images]):
            marks = [np.isin(np.arange(image.length), list(image.fixed)) for image in images]
            fixed[placed] = np.concatenate(marks)
        media.extend(images)
    samples = [_read_sample(*columns, media, by_frame) for columns in zip(owners, lives, fixed, strict=True)]
    for number, sample in enumerate(samples if reads_cells else ()):
        if not len(sample.vision):
            continue
        cells, grids = zip(*(image.cells for image in sample.media), strict=True)
        if sum(map(len, cells)) != len(sample.vision):
            raise UnsupportedError(
                "The rows and columns of this picture's tokens are not known: its features were computed elsewhere, or "
                "the attention_mask hides some tokens. Pass the picture itself, and unmask all its tokens."
            )
        samples[number] = replace(sample, cells=torch.cat(cells), grids=grids)
    return samples


def _read_sample(owner: Array, live: Array, fixed: Array, media: Sequence[MediaTokens], by_frame: bool) -> Sample:
    """One row of the table: each column's image (−1: none), whether it is live, and whether it always stays."""
    # Generation reads the row before a new token, also where that is padding (on the right of the prompt).
    read = ~live & np.append(live[1:], True) & (live.cumsum() > 0)
    text = np.flatnonzero((live & ((owner < 0) | fixed)) | read)
    every = live & (owner >= 0)
    vision = np.flatnonzero(every & ~fixed)
    image_of = owner[vision]
    begins = np.flatnonzero(np.diff(image_of, prepend=-1))
    counts = np.diff(begins, append=len(vision)).tolist()
    images = [media[index] for index in image_of[begins]]
    # The rows of an image that the tower has reduced stand in its first columns, so none may be masked.
    if any([image.changed and image.free != count for image, count in zip(images, counts, strict=True)]):
        raise UnsupportedError(
            "The attention_mask hides some tokens of an image whose tokens were reduced in the tower. "
            "Unmask all tokens of the image."
        )
    frames: tuple[int, ...] | None = None
    if by_frame:
        frames = tuple(itertools.chain(*(image.free_frames for image in images)))
        if sum(frames) != len(vision):
            raise UnsupportedError(
                "Where this video's frames begin is not known, so its tokens cannot be ranked frame by frame: its "
                "family does not report the frames, or the attention_mask hides some tokens. Use scope='image' or "
                "'sample'."
            )
    sizes = frames or tuple(counts)
    words = text[live[text]]
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - np.asarray(sizes, dtype=np.int64)
    lasts, firsts = vision[(ends - 1).clip(0)], vision[starts.clip(0, len(vision) - 1)]  # columns, of each image
    text_after, text_from = (len(words) - np.searchsorted(words, columns) for columns in (lasts, firsts))
    ordinals: tuple[Tensor, Tensor] | None = None
    if fixed.any():
        counted = every.cumsum() - 1  # of columns text, image, image: −1 0 1
        ordinals = torch.from_numpy(counted[vision]), torch.from_numpy(counted[every & fixed])
    # A run begins where columns or images do not go on.
    begins_run = (np.diff(vision, prepend=vision[:1]) > 1) | (np.diff(image_of, prepend=image_of[:1]) != 0)
    return Sample(
        live=int(live.sum()),
        text=torch.from_numpy(text),
        vision=torch.from_numpy(vision),
        runs=torch.from_numpy(begins_run.cumsum()),
        media=images,
        sizes=sizes,
        text_after=tuple(text_after.tolist()),
        text_from=tuple(text_from.tolist()),
        frames=frames,
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
        ordinals=ordinals,
        words=torch.from_numpy(words),
    )
