"""Begin: the samples of a call as the host knows them, and those alike in buckets, which one operator serves."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.rank import into_runs
from foveate.core.tensors import alike, on_tensors, send, stacked
from foveate.core.views import Arriving
from foveate.engine import guards
from foveate.engine.media import MediaTokens
from foveate.engine.program import CELLS

__all__ = [
    "WORDS",
    "Begun",
    "Bucket",
    "Sample",
    "Sizes",
    "Unit",
    "buckets_of",
    "image_units",
    "read_samples",
    "sample_unit",
]

Array = np.ndarray[Any, np.dtype[Any]]
NOTHING = torch.zeros(0, dtype=torch.int64)
WORDS = "words"
"""The name under which a bucket remembers the columns of the text behind its first image."""


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
        in_sample: Vision tokens of the whole sample as they entered, where this is a part of it.
        image: Which of the sample's images (or frames) it is, counted from the end where it is all: the text behind all
            of them is that behind the last, −1.
    """

    start: int
    stop: int
    entered: int
    started: int
    text_after: tuple[bool, ...]
    in_sample: int | None = None
    image: int = -1

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The same as a slice."""
        return slice(self.start, self.stop)

    @property
    def arriving(self) -> Arriving:
        """What a stage's count is made of."""
        return Arriving(len(self), self.entered, self.started, in_sample=self.in_sample)


def sample_unit(sample: Sample, count: int) -> Unit:
    """All `count` rows that are left of a sample."""
    text_after = tuple([after > 0 for after in sample.text_after])
    return Unit(0, count, sum(sample.entered_sizes), sum(sample.started_sizes), text_after)


def image_units(sample: Sample, sizes: Sequence[int]) -> list[Unit]:
    """The rows of each image (or frame), of which there are so many left."""
    if len(sizes) == 1:
        return [sample_unit(sample, sizes[0])]
    ends = itertools.accumulate(sizes)
    in_sample = sum(sample.entered_sizes)
    images = zip(ends, sizes, sample.entered_sizes, sample.started_sizes, sample.text_after, strict=True)
    units = []
    for image, (end, size, entered, started, text) in enumerate(images):
        units.append(Unit(end - size, end, entered, started, (text > 0,), in_sample, image))
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
    alive = torch.ones_like(first_mask) if live is None else live.to(first_mask.device) != 0
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
            fixed[placed] = np.concatenate([_marked(image) for image in images])
        media.extend(images)
    samples = [_read_sample(*columns, media, by_frame) for columns in zip(owners, lives, fixed, strict=True)]
    if not reads_cells:
        return samples
    return [_with_cells(sample) for sample in samples]


def _with_cells(sample: Sample) -> Sample:
    """The same, with the cells that its vision tokens stand in."""
    if not len(sample.vision):
        return sample
    cells, grids = zip(*(image.cells for image in sample.media), strict=True)
    guards.refuse_unknown_cells(sum(map(len, cells)), len(sample.vision))
    return replace(sample, cells=torch.cat(cells), grids=grids)


def _marked(image: MediaTokens) -> Array:
    """Which of its tokens always stay, (tokens,) bool."""
    marks = np.zeros(image.length, bool)
    marks[list(image.fixed)] = True
    return marks


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
    masked = [image.changed and image.free != count for image, count in zip(images, counts, strict=True)]
    guards.refuse_partly_masked(any(masked))
    frames: tuple[int, ...] | None = None
    if by_frame:
        frames = tuple(itertools.chain(*(image.free_frames for image in images)))
    guards.refuse_unknown_frames(frames, len(vision))
    sizes = frames or tuple(counts)
    words = text[live[text]]
    text_after, text_from = _text_behind(words, vision, sizes)
    ordinals: tuple[Tensor, Tensor] | None = None
    if fixed.any():
        counted = every.cumsum() - 1  # of columns text, image, image: −1 0 1
        ordinals = torch.from_numpy(counted[vision]), torch.from_numpy(counted[every & fixed])
    return Sample(
        live=int(live.sum()),
        text=torch.from_numpy(text),
        vision=torch.from_numpy(vision),
        runs=torch.from_numpy(_runs(vision, image_of)),
        media=images,
        sizes=sizes,
        text_after=text_after,
        text_from=text_from,
        frames=frames,
        starts=bool(owner[0] >= 0),
        ends=bool(owner[-1] >= 0),
        ordinals=ordinals,
        words=torch.from_numpy(words),
    )


def _text_behind(text: Array, vision: Array, sizes: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many of the text's columns come after the last token of each image, and after its first."""
    if not len(vision):
        return (0,) * len(sizes), (0,) * len(sizes)
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - np.asarray(sizes, dtype=np.int64)

    def behind(places: Array) -> tuple[int, ...]:
        before = np.searchsorted(text, vision[places])
        return tuple((len(text) - before).tolist())

    return behind((ends - 1).clip(0)), behind(starts.clip(0, len(vision) - 1))


def _runs(vision: Array, image_of: Array) -> Array:
    """Which run of columns each vision token is in: a new one begins where columns or images do not go on."""
    apart = (np.diff(vision) > 1) | (np.diff(image_of) != 0)
    first = np.zeros(min(1, len(vision)), np.int64)  # of no tokens at all there is no first
    return np.concatenate((first, apart.cumsum()))


TENSORS = ("index", "vision", "slots", "source", "runs", "parent", "notes", "text", "ordinals")
"""The attributes of a bucket that are tensors with the samples in front, or nests of them; some may be None."""

# -- samples alike ------------------------------------------------------------------------------------------------


Sizes = tuple[int, ...]
"""Rows of each image of a sample, or of each frame, in order."""


@dataclass(slots=True, eq=False)
class Bucket:
    """Samples of a batch that are alike: as many images, of the same sizes, and as many tokens left.

    The tokens that are left have the form of a `Cut`, with the samples in front, counted from the tokens that entered:
    `source` is the token that each row stands for, `parent` the row that each token went into. An example: one sample
    with five tokens in columns 3 to 7, of which the third was dropped and the last joined the second:

        vision   3 4 5 6 7       source   0 1 3         slots   0 1 3
                                 parent   0 1 −1 2 1    columns 3 4 6

    Attributes:
        members: Which samples of the batch.
        samples: The same as the host knows them.
        index: `members`, (samples,) int64.
        vision: Columns of their vision tokens as they entered, (samples, entered) int64, ascending.
        slots: Where the rows that are left are stored, (samples, left) int64: ordinals into `vision`, ascending.
        source: Which tokens these rows stand for, (samples, left) int64: ordinals into `vision` in row order; −1 for
            none of its own. The same as `slots` until something is merged or reordered.
        sizes: Rows left of each image, in order; None once only the device knows.
        runs: Which run of columns each vision token is in, (samples, entered) int64; None where each image has one.
        parent: The row each vision token went into, (samples, entered) int64, −1 if it was dropped; None while nothing
            is merged.
        notes: What is remembered of the rows, a tensor a name with samples and rows in front.
        text: What is remembered of the text behind the images, a tensor a name with samples and images in front; and
            `WORDS`, (samples, words) int64.
        ordinals: See `Sample.ordinals`, with the samples in front.
        begun: Rows that layer 0 has processed, of each sample; None before it has.
    """

    members: tuple[int, ...]
    samples: tuple[Sample, ...]
    index: Tensor
    vision: Tensor
    slots: Tensor
    source: Tensor
    sizes: Sizes | None
    runs: Tensor | None = None
    parent: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)
    ordinals: tuple[Tensor, Tensor] | None = None
    begun: Begun | None = None
    _columns: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, members: Sequence[int], batch: Sequence[Sample], device: torch.device) -> Self:
        """These samples of a batch, which must be alike."""

        def sent(tensors: Sequence[Tensor]) -> Tensor:
            return send(torch.stack(list(tensors)), device)

        samples = tuple([batch[member] for member in members])
        vision = sent([sample.vision for sample in samples])
        slots = torch.arange(vision.shape[1], device=device).expand_as(vision)
        bucket = cls(
            members=tuple(members),
            samples=samples,
            index=send(torch.tensor(members), device),
            vision=vision,
            slots=slots,
            source=slots,
            sizes=samples[0].sizes,
        )
        cells = [sample.cells for sample in samples if sample.cells is not None]
        if cells:
            bucket.notes[CELLS] = sent(cells)
        if samples[0].parted:
            bucket.runs = sent([sample.runs for sample in samples])
        pairs = [sample.ordinals for sample in samples if sample.ordinals is not None]
        if pairs:
            free, fixed = zip(*pairs, strict=True)
            bucket.ordinals = sent(free), sent(fixed)
        return bucket

    @property
    def first(self) -> Sample:
        """One of the samples, for what is the same in all."""
        return self.samples[0]

    @property
    def entered(self) -> int:
        """Vision tokens of each sample as they entered the model."""
        return self.vision.shape[1]

    @property
    def left(self) -> int:
        """Rows left of each sample."""
        return self.source.shape[1]

    @property
    def columns(self) -> Tensor:
        """Where the rows that are left are stored, (samples, left) int64: columns of the call. Worked out once."""
        if self._columns is None or self._columns[0] is not self.slots:
            whole = self.slots.shape == self.vision.shape  # ascending, so these are all
            self._columns = self.slots, self.vision if whole else self.vision.gather(1, self.slots)
        return self._columns[1]

    @property
    def owners(self) -> Tensor:
        """`index` with a dimension for rows, (samples, 1)."""
        return self.index[:, None]

    def positions_of(self) -> Tensor:
        """The column whose position each row has, (samples, left) int64; −1 for a row that is no token of its own."""
        return _looked_up(self.vision, self.source)

    def text_behind(self, start: int, stop: int) -> tuple[int, bool]:
        """How much text stands behind the rows `start` to `stop`.

        Returns:
            At least as many text rows as stand there in any sample, and whether every sample has exactly that many.
        """
        spans = list(itertools.pairwise([0, *itertools.accumulate(self.sizes or ())]))
        if (start, stop) not in spans:  # the rows of several images, or of one whose size only the device knows
            return max(len(sample.text) for sample in self.samples), False
        image = spans.index((start, stop))
        counts = {sample.text_from[image] for sample in self.samples}
        after = {sample.text_after[image] for sample in self.samples}
        return max(counts), counts == after and len(counts) == 1

    def to(self, device: torch.device) -> None:
        """Move there: a model may be spread over devices."""
        if self.index.device == device:
            return
        for name in TENSORS:
            setattr(self, name, on_tensors(getattr(self, name), lambda tensor: tensor.to(device)))

    def part(self, places: Sequence[int]) -> "Bucket":
        """The samples at these places alone."""
        if len(places) == len(self.members):
            return self
        at = send(torch.tensor(places), self.index.device)
        tensors = {name: on_tensors(getattr(self, name), lambda tensor: tensor[at]) for name in TENSORS}
        return Bucket(
            members=tuple(self.members[place] for place in places),
            samples=tuple(self.samples[place] for place in places),
            sizes=self.sizes,
            begun=self.begun,
            **tensors,
        )

    def take(self, cuts: Sequence[Cut], sizes: Sizes | None) -> tuple[Tensor | None, Tensor] | None:
        """Drop and merge as cuts say, in everything but the stream.

        Tokens that stay do so in their places. Merged rows go to the first places of the run of the token they stand
        for; a row that is no token of its own, to its image's first run.

        Args:
            cuts: Of each sample, alike but for what their tensors hold. Their notes are all that is remembered.
            sizes: Rows they leave of each image; None where only the device knows.

        Returns:
            None where all tokens stay. Else merged rows in the order they are stored in, (samples, rows, …), None where
            nothing is merged; and the ordinals into `vision` that rows were stored at before, (samples, rows) int64.
        """
        first = cuts[0]
        self.notes = stacked([cut.notes for cut in cuts])
        if first.count == self.source.shape[1] and first.rows is None:
            return None
        device = self.index.device
        kept = stacked([cut.source for cut in cuts]).to(device)
        if first.rows is None:
            alike = self.source is self.slots
            self.slots = before = self.slots.gather(1, kept)
            if self.parent is not None:
                # Of three rows the first and last stay: went 0 −1 1.
                rows = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
                went = torch.full_like(self.source, -1).scatter(1, kept, rows)
                self.parent = _looked_up(went, self.parent)
            self.source, self.sizes = before if alike else self.source.gather(1, kept), sizes
            return None, before
        rows = stacked([cut.rows for cut in cuts if cut.rows is not None])
        went = stacked([cut.parent for cut in cuts]).to(device)
        return self._merge(kept, rows, went, sizes)

    def _merge(self, kept: Tensor, rows: Tensor, went: Tensor, sizes: Sizes | None) -> tuple[Tensor, Tensor]:
        """`take` where there are new rows, which are stored at the first places of their images or runs.

        Shapes: the tokens that rows stand for, (samples, rows) int64; (samples, rows, …); and the row that each token
        went into, (samples, left) int64.
        """
        guards.refuse_unknown_owners(self.sizes, sizes)
        assert self.sizes is not None
        assert sizes is not None
        starts = [0, *itertools.accumulate(self.sizes)][: len(sizes)]  # where each image's rows began
        if self.runs is None:
            places = _first_places(starts, sizes, kept.device).expand_as(kept)
        else:
            runs = self.runs.gather(1, self.slots)
            order, places = into_runs(runs.gather(1, _stands_for(kept, starts, sizes)), runs)
            samples = torch.arange(len(order), device=order.device)[:, None]
            kept, rows = kept.gather(1, order), rows[samples, order]
            self.notes = {name: note[samples, order] for name, note in self.notes.items()}
            went = _looked_up(order.argsort(dim=1), went)
        if self.parent is not None:  # an earlier cut has merged, so tokens go on from the rows that it left
            went = _looked_up(went, self.parent)
        before = self.slots.gather(1, kept.clamp(min=0))
        self.source, self.slots = _looked_up(self.source, kept), self.slots.gather(1, places)
        self.parent, self.sizes = went, sizes
        return rows, before

    def source_and_parent(self) -> tuple[Tensor, Tensor | None]:
        """`source` and `parent` as a trace has them, which counts all vision tokens, also those always kept.

        An example: token 0 is a CLS that always stays, tokens 1 to 3 are patches, and the second patch was dropped.

            free 1 2 3, fixed 0      here: source 0 2, parent 0 −1 1      in the trace: source 0 1 3, parent 0 1 −1 2
        """
        if self.ordinals is None:
            return self.source, self.parent
        free, fixed = self.ordinals
        names = _looked_up(free, self.source)
        # Rows are in the order in which they are stored; those that always stay are among them.
        stored = torch.cat((free.gather(1, self.slots), fixed), dim=1)
        order = stored.argsort(dim=1)
        source = torch.cat((names, fixed), dim=1).gather(1, order)
        if self.parent is None:
            return source, None
        row = order.argsort(dim=1)  # the place of each row in that order
        parent = row.new_empty(len(free), free.shape[1] + fixed.shape[1])
        parent.scatter_(1, free, _looked_up(row, self.parent))
        parent.scatter_(1, fixed, row[:, names.shape[1] :])
        return source, parent


def _stands_for(kept: Tensor, starts: Sequence[int], left: Sequence[int]) -> Tensor:
    """`kept`, (samples, rows) int64, in which a row that stands for no token has the first token of its image."""
    firsts: list[int] = []
    for start, count in zip(starts, left, strict=True):
        firsts += [start] * count
    return torch.where(kept < 0, send(torch.tensor(firsts), kept.device), kept)


def _first_places(starts: Sequence[int], left: Sequence[int], device: torch.device) -> Tensor:
    """The first places of each image, as many as it has rows left: of images at 0 and 5 with two rows each 0 1 5 6."""
    if len(left) == 1:
        return torch.arange(left[0], device=device)
    parts = [torch.arange(start, start + count) for start, count in zip(starts, left, strict=True)]
    return send(torch.cat(parts), device)


def _looked_up(tables: Tensor, places: Tensor) -> Tensor:
    """The entries of each sample's table at these places, (samples, any) int64 both; −1 stays −1."""
    return torch.where(places < 0, places, tables.gather(1, places.clamp(min=0)))


def buckets_of(samples: Sequence[Sample], at_once: bool, device: torch.device, by_words: bool = False) -> list[Bucket]:
    """The samples that have vision tokens, those alike together if they may be looked at together.

    Args:
        samples: The batch.
        at_once: Whether they may be.
        device: Where they will be.
        by_words: Whether samples that are alike have as much text behind each image.
    """
    with_vision = [index for index, sample in enumerate(samples) if len(sample.vision)]
    kinds: list[Any] = list(with_vision)
    if at_once:
        kinds = [(*_kind(samples[index]), by_words and samples[index].text_after) for index in with_vision]
    groups = [[with_vision[place] for place in places] for places in alike(kinds)]
    return [Bucket.of(members, samples, device) for members in groups]


def _kind(sample: Sample) -> Any:
    """What samples that are alike have in common."""
    tower = tuple([_kind_of_cut(image.cut) for image in sample.media])
    text = tuple([after > 0 for after in sample.text_after])
    sizes = (sample.sizes, sample.entered_sizes, sample.started_sizes, sample.fixed, sample.parted)
    return (*sizes, sample.grids, text, tower)


def _kind_of_cut(cut: Cut | None) -> Any:
    """What the tower did to an image, as far as samples that are alike must have it in common."""
    if cut is None:
        return None
    return cut.count, cut.stays_whole, tuple(sorted((name, note.shape[1:]) for name, note in cut.notes.items()))
