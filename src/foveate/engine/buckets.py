"""Begin: groups of alike samples of a batch, which one operator processes, and what is left of their tokens."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.rank import into_runs
from foveate.core.tensors import Change, alike, on_tensors, send, stack_samples
from foveate.engine.program import CELLS
from foveate.engine.samples import Begun, Sample
from foveate.errors import SettingError

WORDS = "words"
"""Name of a bucket's tensor with the columns of the text behind its first image."""
TENSORS = ("index", "vision", "slots", "source", "runs", "parent", "notes", "text", "ordinals")
"""Attributes of a bucket that are tensors with the samples in front, or nested tensors; some may be None."""

Sizes = tuple[int, ...]
"""Rows of each image (or frame) of a sample, in order."""


@dataclass(slots=True, eq=False)
class Bucket:
    """Samples of a batch that are alike: with as many images, of the same sizes, and as many tokens left.

    Four kinds of indices. Columns, tokens and slots follow the order of the prompt; rows may not.

        column   a position in the full-length stream, text and padding included
        token    a vision token that entered, 0 for the first: `vision` holds its column
        row      a vector that is left: `source` holds the token it stands for, `parent` the row of each token
        slot     the token in whose column a row is stored: `slots` holds that of each row, so `columns` is
                 `vision[slots]`

    Rows and slots differ after tokens were merged or reordered. Example: three tokens in columns 3 to 5, the first
    dropped and the last merged into the second, stored where the image begins:

        token    0 1 2       row      0
        vision   3 4 5       source   1
        parent   −1 0 0      slots    0      columns   3

    Attributes:
        members: Indices of the samples in the batch.
        samples: These samples as the host knows them.
        index: `members`, (samples,) int64.
        vision: Columns of their vision tokens as they entered, (samples, entered) int64, ascending.
        slots: Slot of each row, (samples, left) int64, ascending.
        source: Token of each row, (samples, left) int64; −1 for none. The same tensor as `slots` until they differ.
        sizes: Rows left of each image, in order; None if only the device knows.
        runs: Index of the run of columns of each vision token, (samples, entered) int64; None if each image is one run.
        parent: The row each vision token was merged into, (samples, entered) int64, −1 if dropped; None while nothing
            is merged.
        notes: Tensors stored per row, by name, with samples and rows in front.
        text: Tensors stored about the text behind the images, by name, with samples and images in front; and `WORDS`,
            (samples, words) int64.
        ordinals: See `Sample.ordinals`, with the samples in front.
        begun: Rows that layer 0 processed, of each sample; None before layer 0.
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
        """Build the bucket of these samples of a batch, which must be alike."""

        def send_all(tensors: Sequence[Tensor]) -> Tensor:
            return send(torch.stack(list(tensors)), device)

        samples = tuple([batch[member] for member in members])
        vision = send_all([sample.vision for sample in samples])
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
            bucket.notes[CELLS] = send_all(cells)
        if samples[0].parted:
            bucket.runs = send_all([sample.runs for sample in samples])
        pairs = [sample.ordinals for sample in samples if sample.ordinals is not None]
        if pairs:
            free, fixed = zip(*pairs, strict=True)
            bucket.ordinals = send_all(free), send_all(fixed)
        return bucket

    @property
    def first(self) -> Sample:
        """One of the samples, for values that all share."""
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
        """Columns of the call in which the rows that are left are stored, (samples, left) int64. Cached."""
        if self._columns is None or self._columns[0] is not self.slots:
            is_whole = self.slots.shape == self.vision.shape  # slots ascend, so these are all of them
            self._columns = self.slots, self.vision if is_whole else self.vision.gather(1, self.slots)
        return self._columns[1]

    @property
    def owners(self) -> Tensor:
        """`index` with a dimension for rows, (samples, 1)."""
        return self.index[:, None]

    def positions_of(self) -> Tensor:
        """The column whose position each row has, (samples, left) int64; −1 for a row that stands for no token."""
        return look_up(self.vision, self.source)

    def text_behind(self, start: int, stop: int) -> tuple[int, bool]:
        """Return how much text stands behind the rows `start` to `stop`.

        Returns:
            An upper bound over the samples, and whether every sample has exactly that many text rows.
        """
        spans = list(itertools.pairwise([0, *itertools.accumulate(self.sizes or ())]))
        if (start, stop) not in spans:  # rows of several images, or of one whose size only the device knows
            return max(len(sample.text) for sample in self.samples), False
        image = spans.index((start, stop))
        counts = {sample.text_from[image] for sample in self.samples}
        after = {sample.text_after[image] for sample in self.samples}
        return max(counts), counts == after and len(counts) == 1

    def to(self, device: torch.device) -> None:
        """Move the tensors to a device. A model may be spread over several."""
        if self.index.device == device:
            return
        for name in TENSORS:
            setattr(self, name, on_tensors(getattr(self, name), lambda tensor: tensor.to(device)))

    def with_tensors(self, change: Change) -> "Bucket":
        """Return this bucket with `change` applied to its tensors."""
        tensors = {name: on_tensors(getattr(self, name), change) for name in TENSORS}
        return replace(self, **tensors, _columns=None)

    def of_samples(self, samples: Sequence[Sample]) -> "Bucket":
        """Return this bucket with its samples taken from another description of the batch."""
        return replace(self, samples=tuple([samples[member] for member in self.members]))

    def part(self, places: Sequence[int]) -> "Bucket":
        """Return a bucket of only the samples at these places."""
        if len(places) == len(self.members):
            return self
        at = send(torch.tensor(places), self.index.device)
        part = self.with_tensors(lambda tensor: tensor[at])
        part.members = tuple(self.members[place] for place in places)
        part.samples = tuple(self.samples[place] for place in places)
        return part

    def take(self, cuts: Sequence[Cut], sizes: Sizes | None) -> tuple[Tensor | None, Tensor] | None:
        """Drop and merge rows by the cuts, in everything except the stream.

        Tokens that stay keep their places. Merged rows move to the first places of the run of the token they stand for.
        A row without a token moves to its image's first run.

        Args:
            cuts: One per sample. They differ only in the values of their tensors. Their notes replace all notes.
            sizes: Rows they leave of each image; None if only the device knows.

        Returns:
            None if all tokens stay. Else the merged rows in the order they are stored in, (samples, rows, …), None if
            nothing is merged; and the slots in which the rows were stored before, (samples, rows) int64.
        """
        first = cuts[0]
        self.notes = stack_samples([cut.notes for cut in cuts])
        if first.count == self.source.shape[1] and first.rows is None:
            return None
        kept = stack_samples([cut.source for cut in cuts]).to(self.index.device)  # (samples, rows)
        if first.rows is not None:
            rows = stack_samples([cut.rows for cut in cuts if cut.rows is not None])  # (samples, rows, …)
            went = stack_samples([cut.parent for cut in cuts]).to(kept.device)  # (samples, left)
            return self._merge(kept, rows, went, sizes)
        alike = self.source is self.slots
        self.slots = before = self.slots.gather(1, kept)  # (samples, rows)
        if self.parent is not None:
            # Of three rows, the first and last stay: went is 0 −1 1.
            numbers = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
            went = torch.full_like(self.source, -1).scatter(1, kept, numbers)  # (samples, left)
            self.parent = look_up(went, self.parent)  # (samples, entered)
        self.source, self.sizes = before if alike else self.source.gather(1, kept), sizes
        return None, before

    def _merge(self, kept: Tensor, rows: Tensor, went: Tensor, sizes: Sizes | None) -> tuple[Tensor, Tensor]:
        """Merge as `take` does. The new rows are stored at the first slots of their images or runs.

        Example: the three tokens of the class docstring, nothing dropped before, left as one row:

            kept   1        went   −1 0 0        before   1 (the slot of the row's token)        slots   0

        Args:
            kept: The row, among those left, that each new row stands for, (samples, rows) int64; −1 for none.
            rows: (samples, rows, …).
            went: The new row that each row was merged into, (samples, left) int64; −1 if dropped.
            sizes: New rows of each image.

        Returns:
            The rows in the order of their slots, and the slots where they were before, (samples, rows).
        """
        if self.sizes is None or sizes is None:
            raise SettingError(
                "A stage that merges must know which rows belong to which image. Set scope='image' (of a stage: "
                "unit='image'), and give a count that does not depend on tensor values."
            )
        starts = [0, *itertools.accumulate(self.sizes)][: len(sizes)]  # first row of each image before the merge
        if self.runs is None:
            # For images at 0 and 5 with two rows each: 0 1 5 6.
            ranges = [torch.arange(at, at + size, device=kept.device) for at, size in zip(starts, sizes, strict=True)]
            places = (torch.cat(ranges) if len(ranges) > 1 else ranges[0]).expand_as(kept)  # (samples, rows)
        else:
            # A row without a token moves to where its image begins.
            firsts = [kept.new_full((size,), at) for at, size in zip(starts, sizes, strict=True)]
            stands_for = torch.where(kept < 0, torch.cat(firsts), kept)
            runs = self.runs.gather(1, self.slots)  # (samples, left)
            order, places = into_runs(runs.gather(1, stands_for), runs)  # (samples, rows) both
            samples = torch.arange(len(order), device=order.device)[:, None]
            kept, rows = kept.gather(1, order), rows[samples, order]
            self.notes = {name: note[samples, order] for name, note in self.notes.items()}
            went = look_up(order.argsort(dim=1), went)
        if self.parent is not None:  # an earlier cut merged: map its rows to the new ones
            went = look_up(went, self.parent)  # (samples, entered)
        before = self.slots.gather(1, kept.clamp(min=0))
        self.slots, self.source = self.slots.gather(1, places), look_up(self.source, kept)
        self.parent, self.sizes = went, sizes
        return rows, before

    def source_and_parent(self) -> tuple[Tensor, Tensor | None]:
        """Return `source` and `parent` as a trace has them, which counts all vision tokens, also those always kept.

        Example: token 0 is a CLS that always stays, tokens 1 to 3 are patches, and the second patch was dropped.

            free 1 2 3, fixed 0      here: source 0 2, parent 0 −1 1      in the trace: source 0 1 3, parent 0 1 −1 2
        """
        if self.ordinals is None:
            return self.source, self.parent
        free, fixed = self.ordinals
        names = look_up(free, self.source)
        # The trace lists rows in the order of their columns, including those that always stay.
        stored = torch.cat((free.gather(1, self.slots), fixed), dim=1)
        order = stored.argsort(dim=1)
        source = torch.cat((names, fixed), dim=1).gather(1, order)
        if self.parent is None:
            return source, None
        row = order.argsort(dim=1)  # the inverse: the place of each row in that order
        parent = row.new_empty(len(free), free.shape[1] + fixed.shape[1])
        parent.scatter_(1, free, look_up(row, self.parent))
        parent.scatter_(1, fixed, row[:, names.shape[1] :])
        return source, parent


def look_up(tables: Tensor, places: Tensor) -> Tensor:
    """Look up these places in each sample's table, both (samples, any) int64: 5 7 9 at 2 −1 0 gives 9 −1 5."""
    return torch.where(places < 0, places, tables.gather(1, places.clamp(min=0)))


def buckets_of(samples: Sequence[Sample], at_once: bool, device: torch.device, by_words: bool = False) -> list[Bucket]:
    """Group the samples that have vision tokens into buckets of alike samples.

    Args:
        samples: The batch.
        at_once: Whether stages may run on several samples at once. If not, each sample is a bucket.
        device: Device of the buckets' tensors.
        by_words: Whether samples of a bucket must have equally much text behind each image.
    """
    with_vision = [index for index, sample in enumerate(samples) if len(sample.vision)]
    kinds: list[Any] = list(with_vision)
    if at_once:
        kinds = [(*_kind(samples[index]), by_words and samples[index].text_after) for index in with_vision]
    groups = [[with_vision[place] for place in places] for places in alike(kinds)]
    return [Bucket.of(members, samples, device) for members in groups]


def _kind(sample: Sample) -> Any:
    """Return what samples of one bucket must have in common, as a comparable value."""
    tower: list[Any] = []
    for image in sample.media:
        if image.cut is None:
            tower.append(None)
        else:
            notes = sorted((name, note.shape[1:]) for name, note in image.cut.notes.items())
            tower.append((image.cut.count, image.cut.stays_whole, tuple(notes)))
    text = tuple([after > 0 for after in sample.text_after])
    sizes = (sample.sizes, sample.entered_sizes, sample.started_sizes, sample.fixed, sample.parted)
    return (*sizes, sample.grids, text, tuple(tower))
