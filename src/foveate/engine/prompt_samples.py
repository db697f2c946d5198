"""Begin: the samples of a call as the host knows them, read from the prompt and its media."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.units import Arriving, Unit
from foveate.engine.media_tokens import MediaTokens
from foveate.errors import UnsupportedError

Array = np.ndarray[Any, np.dtype[Any]]
NO_COLUMNS = torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sequence of the batch as it enters the decoder. Its tensors are on the host.

    Attributes:
        live: Number of columns that are not padding.
        text: Columns of its other live tokens, and of padding whose output is read: (…,) int64, ascending.
        vision: Columns of its vision tokens, (entered,) int64, ascending. Those always kept count as text.
        runs: Index of the run of consecutive columns that each of these is in, (entered,) int64, ascending. A run
            belongs to one image.
        media: Its images, in order.
        sizes: Vision tokens of each image, or of each frame if the method ranks by frame.
        text_after: For each of these, how many columns of `text` without padding come after its last token.
        text_from: For each, how many come after its first token: more if text stands between its tokens.
        frames: `sizes` if the method ranks by frame, else None.
        starts: Whether the call's first column is one of its vision tokens.
        ends: Whether the call's last column is one.
        ordinals: Indices, among all its vision tokens, of those in `vision`, (entered,) int64, and of those that always
            stay; None if none always stays.
        cells: Frame, row and column of each token in `vision`, (entered, 3) int64 (see `Cells`); None if no stage reads
            them.
        grids: The grids of each image, if a stage reads them.
        words: Columns of `text` that are not padding, (…,) int64, ascending.
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
    words: Tensor = NO_COLUMNS

    @property
    def fixed(self) -> int:
        """Number of vision tokens that always stay."""
        if self.ordinals is None:
            return 0
        return len(self.ordinals[1])

    @property
    def padding(self) -> Tensor | None:
        """Columns of `text` that are padding, (…,) int64; None if there are none."""
        if len(self.words) == len(self.text):
            return None
        return self.text[~torch.isin(self.text, self.words)]

    @property
    def trailing(self) -> int:
        """Rows of padding behind its last token."""
        if len(self.words) == len(self.text):
            return 0
        last = max(columns[-1] for columns in (self.words, self.vision) if len(columns))
        return int((self.text > last).sum())

    @property
    def vision_tokens(self) -> int:
        """Number of all its vision tokens."""
        return len(self.vision) + self.fixed

    @property
    def entered_sizes(self) -> tuple[int, ...]:
        """Vision tokens that may be dropped, of each image (or frame)."""
        return self.frames or tuple([image.free for image in self.media])

    @property
    def started_sizes(self) -> tuple[int, ...]:
        """Rows of each image (or frame) that enter the decoder."""
        return self.frames or tuple([image.started for image in self.media])


@dataclass(frozen=True, slots=True)
class FirstLayer:
    """Rows of a sample that decoder layer 0 processed: those that entered, without those cut before layer 0.

    Attributes:
        count: Rows in total.
        sizes: Rows of each image (or frame); None if only the device knows.
        openers: Owners of the stages that cut there. They still count from what entered (see `follow.openers`).
    """

    count: int
    sizes: tuple[int, ...] | None
    openers: frozenset[tuple[int, ...]]


def sample_unit(sample: Sample, count: int) -> Unit:
    """Return one unit with all `count` rows that are left of a sample."""
    text_after = tuple([after > 0 for after in sample.text_after])
    return Unit(slice(0, count), Arriving(count, sum(sample.entered_sizes), sum(sample.started_sizes)), text_after)


def image_units(sample: Sample, sizes: Sequence[int]) -> list[Unit]:
    """Return one unit per image (or frame); `sizes` are the rows left of each."""
    if len(sizes) == 1:
        return [sample_unit(sample, sizes[0])]
    ends = itertools.accumulate(sizes)
    images = zip(ends, sizes, sample.entered_sizes, sample.started_sizes, sample.text_after, strict=True)
    units = []
    for image, (end, size, entered, started, text) in enumerate(images):
        units.append(Unit(slice(end - size, end), Arriving(size, entered, started), (text > 0,), image))
    return units


def read_samples(
    masks: Sequence[tuple[Tensor, Sequence[MediaTokens]]],
    live: Tensor | None,
    by_frame: bool = False,
    reads_cells: bool = False,
) -> list[Sample]:
    """Read the samples of a call from its vision masks, in one transfer to the host, the only one of a prefill.

    Args:
        masks: For each modality, where its tokens are, (samples, columns) bool, and its images in order.
        live: (samples, columns), nonzero where a column is not padding; None without padding.
        by_frame: Whether `Sample.sizes` counts frames.
        reads_cells: Whether a stage reads the grid positions of tokens.
    """
    # One number per column: bit 0 is set if it is live, bit 1 + n if it belongs to the n-th modality.
    flags = functools.reduce(torch.add, [mask.to(torch.int16) << (bit + 1) for bit, (mask, _) in enumerate(masks)])
    alive = 1 if live is None else live.to(flags.device) != 0
    table = (flags + alive).cpu().numpy()
    lives = table % 2 == 1
    owners = np.full(table.shape, -1)  # the image of each column
    fixed = np.zeros(table.shape, bool)  # whether a column always stays
    media: list[MediaTokens] = []
    for bit, (_, images) in enumerate(masks):
        placed = (table >> (bit + 1)) % 2 == 1
        # Two images of 2 and 3 tokens: 0 0 1 1 1, in the order of their columns.
        lengths = [image.length for image in images]
        owners[placed] = np.repeat(np.arange(len(images)), lengths) + len(media)
        if any(image.fixed for image in images):
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
                "The rows and columns of this picture's tokens are unknown: its features were computed elsewhere, or "
                "the attention_mask hides some tokens. Pass the picture itself, and unmask all its tokens."
            )
        samples[number] = replace(sample, cells=torch.cat(cells), grids=grids)
    return samples


def _read_sample(owner: Array, live: Array, fixed: Array, media: Sequence[MediaTokens], by_frame: bool) -> Sample:
    """Read a sample from its row of the table: each column's image (−1: none), whether it is live, and always stays."""
    # Generation reads the row before a new token, even if that is padding (to the right of the prompt).
    read = ~live & np.append(live[1:], True) & (live.cumsum() > 0)
    text = np.flatnonzero((live & ((owner < 0) | fixed)) | read)
    every = live & (owner >= 0)
    vision = np.flatnonzero(every & ~fixed)
    image_of = owner[vision]
    # Images 0 0 1 1 1 begin at 0 and 2 and have 2 and 3 tokens.
    begins = np.flatnonzero(np.diff(image_of, prepend=-1))
    counts = np.diff(begins, append=len(vision)).tolist()
    images = [media[index] for index in image_of[begins]]
    # If the tower reduced an image, its rows are stored in its first columns, so none may be masked.
    if any(image.changed and image.free != count for image, count in zip(images, counts, strict=True)):
        raise UnsupportedError(
            "The attention_mask hides some tokens of an image whose tokens were reduced in the tower. "
            "Unmask all tokens of the image."
        )
    frames: tuple[int, ...] | None = None
    if by_frame:
        frames = tuple(itertools.chain(*(image.free_frames for image in images)))
        if sum(frames) != len(vision):
            raise UnsupportedError(
                "foveate does not know where this video's frames begin, so its tokens cannot be ranked frame by frame: "
                "its family does not report the frames, or the attention_mask hides some tokens. Use scope='image' or "
                "'sample'."
            )
    sizes = frames or tuple(counts)
    words = text[live[text]]
    # Sizes 2 3 give starts 0 2 and ends 2 5.
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - np.asarray(sizes, dtype=np.int64)
    lasts, firsts = vision[(ends - 1).clip(0)], vision[starts.clip(0, len(vision) - 1)]  # columns, one per image
    text_after, text_from = (len(words) - np.searchsorted(words, columns) for columns in (lasts, firsts))
    ordinals: tuple[Tensor, Tensor] | None = None
    if fixed.any():
        counted = every.cumsum() - 1  # columns text, image, image give −1 0 1
        ordinals = torch.from_numpy(counted[vision]), torch.from_numpy(counted[every & fixed])
    # A run begins where columns are not consecutive or the image changes: columns 3 4 7 give runs 0 0 1.
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
