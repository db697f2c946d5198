"""Begin: what is left of the vision tokens of each sample of a batch."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from foveate.core.cut import Cut, look_up
from foveate.core.rank import into_runs
from foveate.core.tensors import Change, on_tensors, send
from foveate.engine.program import CELLS
from foveate.engine.prompt_samples import Begun, Sample, Unit
from foveate.errors import SettingError

LEFT_TENSORS = ("vision", "words", "slots", "source", "runs", "parent", "notes", "text", "ordinals")
"""Attributes of `Left` that are tensors or nested tensors; some may be None."""


@dataclass(slots=True, eq=False)
class Left:
    """The vision rows that are left of one sample.

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
        member: Index of the sample in the batch.
        sample: What the host knows of it.
        vision: Columns of its vision tokens as they entered, (entered,) int64, ascending.
        words: `Sample.words` on this device.
        slots: Slot of each row, (left,) int64, ascending.
        source: Token of each row, (left,) int64; −1 for none. The same tensor as `slots` until they differ.
        sizes: Rows left of each image, in order; None after a cut that ranked all of them together.
        runs: Index of the run of columns of each vision token, (entered,) int64; None if each image is one run.
        parent: The row each vision token was merged into, (entered,) int64, −1 if dropped; None while nothing is
            merged.
        notes: Tensors stored per row, by name.
        text: Tensors stored about the text behind the images, by name; their first dimension is the images.
        ordinals: See `Sample.ordinals`.
        begun: Rows that layer 0 processed; None before layer 0.
    """

    member: int
    sample: Sample
    vision: Tensor
    words: Tensor
    slots: Tensor
    source: Tensor
    sizes: tuple[int, ...] | None
    runs: Tensor | None = None
    parent: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    text: dict[str, Tensor] = field(default_factory=dict)
    ordinals: tuple[Tensor, Tensor] | None = None
    begun: Begun | None = None
    _columns: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, member: int, sample: Sample, device: torch.device) -> Self:
        """Return all vision rows of a sample."""
        slots = torch.arange(len(sample.vision), device=device)
        left = cls(member, sample, sample.vision, sample.words, slots, slots, sample.sizes, ordinals=sample.ordinals)
        if sample.cells is not None:
            left.notes[CELLS] = sample.cells
        if len(sample.runs) and int(sample.runs[-1]) + 1 > len(sample.media):  # text parts the tokens of an image
            left.runs = sample.runs
        return left._with(lambda tensor: send(tensor, device))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def columns(self) -> Tensor:
        """Columns of the call in which the rows that are left are stored, (left,) int64. Cached."""
        if self._columns is None or self._columns[0] is not self.slots:
            is_whole = len(self.slots) == len(self.vision)  # slots ascend, so these are all of them
            self._columns = self.slots, self.vision if is_whole else self.vision[self.slots]
        return self._columns[1]

    def positions(self) -> Tensor:
        """The column whose position each row has, (left,) int64; −1 for a row that stands for no token."""
        if self.source is self.slots:
            return self.columns
        return look_up(self.source, self.vision)

    def text_behind(self, unit: Unit) -> tuple[Tensor, bool]:
        """Return the columns of text behind a unit's first token, and whether they are behind its last row too."""
        sample = self.sample
        if self.sizes is None or (unit.image < 0 and len(self.sizes) > 1):  # rows of several images
            return self.words, False
        image = max(unit.image, 0)
        words = self.words[len(self.words) - sample.text_from[image] :]
        return words, sample.text_from[image] == sample.text_after[image]

    def to(self, device: torch.device) -> None:
        """Move the tensors to a device. A model may be spread over several."""
        if self.source.device != device:
            self._with(lambda tensor: tensor.to(device))

    def _with(self, change: Change) -> Self:
        for name in LEFT_TENSORS:
            setattr(self, name, on_tensors(getattr(self, name), change))
        self._columns = None
        return self

    def apply(self, cut: Cut, sizes: tuple[int, ...] | None) -> tuple[Tensor | None, Tensor] | None:
        """Drop and merge rows, in everything except the stream.

        Tokens that stay keep their places. Merged rows move to the first places of the run of the token they stand for.
        A row without a token moves to its image's first run.

        Args:
            cut: The cut; the host knows its count. Its notes replace all notes.
            sizes: Rows it leaves of each image; None after a cut that ranked all of them together.

        Returns:
            None if all tokens stay. Else the merged rows in the order they are stored in, (rows, …), None if nothing is
            merged; and the slots in which the rows were stored before, (rows,) int64.
        """
        self.notes = dict(cut.notes)
        if cut.rows is not None:
            return self._merge(cut.to(self.source.device), sizes)
        if cut.count == len(self):
            return None
        kept = cut.source.to(self.source.device)
        alike = self.source is self.slots
        self.slots = before = self.slots[kept]
        if self.parent is not None:  # of three rows, the first and last stay: the cut's parent is 0 −1 1
            self.parent = look_up(self.parent, cut.parent.to(kept.device))
        self.source, self.sizes = before if alike else self.source[kept], sizes
        return None, before

    def _merge(self, cut: Cut, sizes: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
        """Merge as `apply` does. The new rows are stored at the first slots of their images or runs.

        Example: the three tokens of the class docstring, nothing dropped before, left as one row:

            kept   1        went   −1 0 0        before   1 (the slot of the row's token)        slots   0
        """
        kept, rows, went = cut.source, cut.rows, cut.parent
        assert rows is not None
        if self.sizes is None or sizes is None:
            raise SettingError(
                "A stage that merges must know which rows belong to which image. Set scope='image' (of a stage: "
                "unit='image'), and give a count that does not depend on tensor values."
            )
        starts = [0, *itertools.accumulate(self.sizes)][: len(sizes)]  # first row of each image before the merge
        if self.runs is None:  # for images at 0 and 5 with two rows each: 0 1 5 6
            ranges = [torch.arange(at, at + size, device=kept.device) for at, size in zip(starts, sizes, strict=True)]
            places = torch.cat(ranges)
        else:
            # A row without a token moves to where its image begins.
            firsts = [kept.new_full((size,), at) for at, size in zip(starts, sizes, strict=True)]
            stands_for = torch.where(kept < 0, torch.cat(firsts), kept)
            runs = self.runs[self.slots]
            order, places = into_runs(runs[stands_for], runs)
            kept, rows = kept[order], rows[order]
            self.notes = {name: note[order] for name, note in self.notes.items()}
            went = look_up(went, order.argsort())
        if self.parent is not None:  # an earlier cut merged: map its rows to the new ones
            went = look_up(self.parent, went)
        before = self.slots[kept.clamp(min=0)]
        self.slots, self.source = self.slots[places], look_up(kept, self.source)
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
        names = look_up(self.source, free)
        # The trace lists rows in the order of their columns, including those that always stay.
        order = torch.cat((free[self.slots], fixed)).argsort()
        source = torch.cat((names, fixed))[order]
        if self.parent is None:
            return source, None
        row = order.argsort()  # the inverse: the place of each row in that order
        parent = row.new_empty(len(free) + len(fixed))
        parent[free] = look_up(self.parent, row)
        parent[fixed] = row[len(names) :]
        return source, parent


def lefts_of(samples: Sequence[Sample], device: torch.device) -> list[Left]:
    """Return all vision rows of each sample that has some."""
    return [Left.of(member, sample, device) for member, sample in enumerate(samples) if len(sample.vision)]
