"""Each layer: the rows that are left of a batch, in one table. Only this file sorts or searches rows."""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut, look_up, note_of
from foveate.core.rank import into_runs
from foveate.core.tensors import Change, Memo, on_tensors, send
from foveate.core.units import Unit
from foveate.engine.program import CELLS
from foveate.engine.prompt_samples import FirstLayer, Sample
from foveate.engine.streams import gather_rows, reduce_argument
from foveate.errors import SettingError, UnsupportedError

SOURCE, COUNTED, BIAS = "source", "counted", "bias"
"""Names of the engine's own columns of the table: see `Rows.source`, `Rows.window_columns` and `LayerStage.bias`."""
Sizes = tuple[int, ...] | None
"""Vision rows of each image of a sample, in order; None after a cut that ranked all of them together."""


class Decision(NamedTuple):
    """What stages decide about the vision rows of a sample.

    Attributes:
        cut: The cut. The host knows its count.
        sizes: Rows it leaves of each image; of a mask those that arrive.
    """

    cut: Cut
    sizes: Sizes


class Note(NamedTuple):
    """Values of a sample's vision rows, (rows, …), as these were after so many steps."""

    values: Tensor
    steps: int


class RowColumn(NamedTuple):
    """A column of the table of rows.

    Attributes:
        values: By row, (samples, rows, …), or a function of the rows that returns this; or by column of the stream,
            (samples, columns, …), or a function that returns this.
        by_row: Whether they are by row: of the generation in which the column was put.
        stays: What a merged row has that stands for no token: what was stored where it is now, or zeros.
    """

    values: Any
    by_row: bool
    stays: bool


class Step(NamedTuple):
    """What one cut made of a sample's vision rows.

    Attributes:
        source: The row that each row was before, (rows,) int64; −1 for none.
        went: The row that each row before went into, (arriving,) int64, −1 if it was dropped; None if none was merged.
    """

    source: Tensor
    went: Tensor | None

    def map(self, change: Change) -> "Step":
        """Return the step with `change` applied to its tensors."""
        return Step(change(self.source), on_tensors(self.went, change))


@dataclass(eq=False)
class Rows:
    """The rows that layers process, of all samples, text and vision. A cut makes the next generation of the table.

    Three kinds of indices:

        column   a place in the full-length stream, padding included
        token    a vision token of a sample as it entered, from 0
        row      a vector that is left: it is stored in a column, and stands for a token or for none

    A row is stored where its token was, or, if tokens were merged or reordered, where its image begins. A ragged batch
    is padded on the left, because generation reads the last row. A pad repeats the sample's first row, so its numbers
    stay finite; no row attends to it. Example: of six columns with tokens in 1 to 3, the first sample lost token 1, and
    the second has one row, merged from tokens 1 and 2.

        read     0 1 3 4 5        0 0 1 4 5
        valid    1 1 1 1 1        0 1 1 1 1
        source   0 1 3 4 5        0 0 2 4 5
        columns  1 3              1
        tokens   0 2              1

    Columns that others add (`put`, `at`) are computed when they are read. Notes cover the vision rows of a sample
    alone, as remembered hidden states do (`put_note`, `note`). Both follow rows.

    Attributes:
        samples: What the host knows of each sample.
        span: Columns of the stream.
        text: (samples, columns) bool, the columns of rows that are no vision rows.
        entered: Of each sample, the columns of its vision tokens as they entered, (tokens,) int64, ascending.
        words: Of each sample, `Sample.words` on this device.
        runs: Of each sample, the run that each column is in, (columns,) int64; None if each image is one run.
        columns: Of each sample, the columns in which its vision rows are stored, (left,) int64, ascending.
        tokens: Of each sample, the token that each of them stands for, (left,) int64; −1 for none.
        sizes: Of each sample, the vision rows of each image.
        first_layer: Of each sample, the vision rows that layer 0 processed; None before layer 0.
        about: Of each sample, tensors about the text behind its images, by name, the images in front.
        notes: Of each sample, its notes by name.
        table: The columns that were added, by name.
        by_sample: Values of each sample that were added, by name, (samples, …) each.
        steps: Of each sample, the cuts so far.
        generation: How many cuts of the batch came before.
        packed: Whether the samples lie behind one another in one stream, so that there are no pads.
        lengths: Real rows of each sample.
        home: (samples, rows) int64, the column in which each row is stored; of a pad some column that was dropped. None
            while nothing was dropped: layers run on all columns.
        read: (samples, rows) int64, the column from which a row's numbers are read: its home, of a pad the first row's.
        valid: (samples, rows) bool, False for pads; None if there are none.
        source: (samples, rows) int64, the column whose position each row has, −1 for none; `read` until rows merge.
        owners: (samples, 1) int64, the index of each sample; None if there is only one.
        memo: What several layers derive from this generation.
    """

    samples: Sequence[Sample]
    span: int
    text: Tensor
    entered: tuple[Tensor, ...]
    words: tuple[Tensor, ...]
    runs: tuple[Tensor | None, ...]
    columns: tuple[Tensor, ...]
    tokens: tuple[Tensor, ...]
    sizes: tuple[Sizes, ...]
    first_layer: list[FirstLayer | None]
    about: tuple[dict[str, Tensor], ...]
    notes: tuple[dict[str, Note], ...]
    steps: tuple[tuple[Step, ...], ...]
    table: dict[str, RowColumn] = field(default_factory=dict)
    by_sample: dict[str, Tensor] = field(default_factory=dict)
    generation: int = 0
    packed: bool = False
    lengths: tuple[int, ...] = ()
    home: Tensor | None = None
    read: Tensor = None  # type: ignore[assignment]
    valid: Tensor | None = None
    source: Tensor = None  # type: ignore[assignment]
    owners: Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    _first: Tensor | None = None  # the columns of a single sample's rows
    _real: Tensor | None = None  # `valid` for values with a width

    @classmethod
    def entering(cls, samples: Sequence[Sample], span: int, device: torch.device, packed: bool = False) -> Self:
        """Return the table of all rows of a prompt, as they enter. Packed samples have columns of one stream."""
        text = np.full((1 if packed else len(samples), span), packed)
        for member, sample in enumerate(samples):
            if packed:
                text[0, sample.vision.numpy()] = False
            else:
                text[member, sample.text.numpy()] = True
        put = partial(send, device=device)
        entered = tuple([put(sample.vision) for sample in samples])
        rows = cls(
            samples,
            span,
            put(torch.from_numpy(text)),
            entered,
            tuple([put(sample.words) for sample in samples]),
            tuple([on_tensors(_runs_of(sample, span), put) for sample in samples]),
            entered,
            tuple([torch.arange(len(sample.vision), device=device) for sample in samples]),
            tuple([sample.sizes for sample in samples]),
            first_layer=[None] * len(samples),
            about=tuple([{} for _ in samples]),
            notes=tuple([{} for _ in samples]),
            steps=((),) * len(samples),
            packed=packed,
        )
        if len(text) > 1:  # for a single sample the columns suffice, with fewer operators
            rows.owners = torch.arange(len(text), device=device)[:, None]
        for member, sample in enumerate(samples):
            if sample.cells is not None:
                rows.put_note(member, CELLS, put(sample.cells))
        return rows

    @property
    def device(self) -> torch.device:
        """Where the table is."""
        return self.text.device

    @property
    def counts(self) -> tuple[int, ...]:
        """Vision rows of each sample."""
        return tuple([len(tokens) for tokens in self.tokens])

    @property
    def members(self) -> list[int]:
        """Samples that have vision rows."""
        return [member for member, count in enumerate(self.counts) if count]

    @property
    def dropped(self) -> bool:
        """Whether a token was dropped, so that layers run on these rows and no longer on all columns."""
        return self.home is not None

    @property
    def merged(self) -> bool:
        """Whether any row was merged or moved."""
        return SOURCE in self.table

    # -- cuts ----------------------------------------------------------------------------------------------------------

    def keep(self, decisions: Mapping[int, Decision]) -> tuple["Rows", list["Merge"]]:
        """Drop and merge rows, in everything except the stream. The one place where rows change.

        Tokens that stay keep their places. Merged rows move to the first places of the run of the token they stand for.
        A row without a token moves to its image's first run.

        Args:
            decisions: What becomes of samples' vision rows. The notes of a cut are put.

        Returns:
            The rows that are left: these if nothing was dropped. And the merged rows.

        Raises:
            SettingError: If rows are merged and it is not known of which image they are.
            UnsupportedError: If no row of the batch is left.
        """
        changed = {}
        for member, decision in decisions.items():
            cut = decision.cut.to(self.device)
            if cut.rows is None and cut.count == len(self.columns[member]):
                self._put_notes(member, cut.notes)
            else:
                changed[member] = Decision(cut, decision.sizes)
        if not changed:
            return self, []
        columns, tokens, sizes, steps = [*self.columns], [*self.tokens], [*self.sizes], [*self.steps]
        merges, noted = [], dict[int, Mapping[str, Tensor]]()
        for member, (cut, own) in changed.items():
            before, noted[member] = columns[member], cut.notes
            if cut.rows is None:
                step, places = Step(cut.source, None), cut.source
                tokens[member] = tokens[member][cut.source]
            else:
                step, places, made, noted[member] = self._placed(member, cut, own)
                tokens[member] = look_up(step.source, tokens[member])
                merges.append(Merge(member, made, before[places], before[step.source.clamp(min=0)]))
            columns[member], sizes[member], steps[member] = before[places], own, (*steps[member], step)
        after = replace(
            self,
            columns=tuple(columns),
            tokens=tuple(tokens),
            sizes=tuple(sizes),
            steps=tuple(steps),
            generation=self.generation + 1,
            memo=Memo(),
        )
        for member, notes in noted.items():
            after._put_notes(member, notes)
        after.table = self._moved(merges, after)
        after._lay_out()
        return after, merges

    def _placed(self, member: int, cut: Cut, sizes: Sizes) -> tuple[Step, Tensor, Tensor, Mapping[str, Tensor]]:
        """Return a merge as a step, the rows of this table in whose columns its rows are stored, and these with notes.

        All are in the order in which rows are stored. Example: of three tokens of an image, the first dropped and the
        last merged into the second: source 1, went −1 0 0, stored at 0.
        """
        source, went, made, notes = cut.source, cut.parent, cut.rows, cut.notes
        before = self.sizes[member]
        assert made is not None
        if before is None or sizes is None:
            raise SettingError(
                "A stage that merges must know which rows belong to which image. Set scope='image' (of a stage: "
                "unit='image'), and give a count that does not depend on tensor values."
            )
        starts = [0, *itertools.accumulate(before)][: len(sizes)]  # first row of each image before the merge
        runs = self.runs[member]
        if runs is None:  # for images at 0 and 5 with two rows each: 0 1 5 6
            ranges = [torch.arange(at, at + size, device=self.device) for at, size in zip(starts, sizes, strict=True)]
            return Step(source, went), torch.cat(ranges), made, notes
        # A row without a token moves to where its image begins.
        firsts = [source.new_full((size,), at) for at, size in zip(starts, sizes, strict=True)]
        stands_for = torch.where(source < 0, torch.cat(firsts), source)
        own = runs[self.columns[member]]
        order, places = into_runs(own[stands_for], own)
        step = Step(source[order], look_up(went, order.argsort()))
        return step, places, made[order], {name: note[order] for name, note in notes.items()}

    def _moved(self, merges: Sequence["Merge"], after: "Rows") -> dict[str, RowColumn]:
        """Return the added columns with the values of merged rows moved to where these are stored now."""
        if not merges:
            return {name: RowColumn(partial(self.full, name), False, own.stays) for name, own in self.table.items()}
        owners, stored = _joined([(self._owner(merge.member), merge.stored) for merge in merges])
        came_from = torch.cat([merge.came_from for merge in merges])
        none = torch.cat([after.tokens[merge.member] for merge in merges]) < 0

        def at_home(name: str, stays: bool) -> Tensor:
            values = self.full(name)
            new, flags = values[owners, came_from], none.view(-1, *[1] * (values.dim() - 2))
            new = torch.where(flags, values[owners, stored] if stays else 0, new)
            return values.index_put((owners, stored), new)

        table = {
            name: RowColumn(partial(at_home, name, own.stays), False, own.stays) for name, own in self.table.items()
        }
        if self.merged:
            every = self.full(SOURCE)
        else:
            every = torch.arange(self.span, device=self.device).expand(len(self.text), -1)
        sources = [look_up(after.tokens[merge.member], self.entered[merge.member]) for merge in merges]
        table[SOURCE] = RowColumn(every.index_put((owners, stored), torch.cat(sources)), False, False)
        return table

    def store(self, merges: Sequence["Merge"], full: Tensor) -> Tensor:
        """Return a copy of a full-length tensor with merged rows written where they are stored."""
        places = _joined([(self._owner(merge.member), merge.stored) for merge in merges])
        return full.index_put(places, torch.cat([merge.rows for merge in merges]).to(full.dtype))

    def laid_out(self) -> "Rows":
        """Return these rows without the columns that are padding, though nothing was dropped."""
        if self.dropped:
            return self
        return self.memo.once(self._all_laid_out, "laid out")

    def _all_laid_out(self) -> "Rows":
        rows = replace(self, memo=Memo())
        rows._lay_out()
        return rows

    def _lay_out(self) -> None:
        """Find the columns of all rows."""
        texts = [len(sample.text) for sample in self.samples]
        lengths = [text + count for text, count in zip(texts, self.counts, strict=True)]
        if not any(lengths):
            raise UnsupportedError(
                "Every token of the prompt was dropped: the prompt has no text, and no vision token was kept. "
                "Always keep a token (min_keep=1), or add text."
            )
        places = _joined([(self._owner(member), columns) for member, columns in enumerate(self.columns)])
        left = self.text.index_put(places, self.text.new_ones(()))  # (samples, columns)
        self.lengths, longest = tuple(lengths), max(lengths)
        if self.packed:  # there are rows of others too
            longest = self.span - sum(map(len, self.entered)) + sum(self.counts)
        # A stable sort of 0s and 1s moves dropped columns to the front: of columns 0 to 5 with 2 and 4 dropped it makes
        # 2 4 0 1 3 5. The last `longest` are the rows. A shorter sample has some dropped columns in front: its pads.
        order = left.to(torch.uint8).sort(dim=1, stable=True).indices
        self.home = self.read = order[:, self.span - longest :]  # (samples, longest)
        self.valid = None
        if not self.packed and min(lengths) < longest:
            self.valid = left.gather(1, self.home)
            # Pads repeat the first row. A sample without rows repeats its last column.
            pads = (longest - self.row_counts).clamp(max=longest - 1)
            self.read = torch.where(self.valid, self.home, self.home.gather(1, pads[:, None]))
        self._first, self._real = self.read[0], None if self.valid is None else self.valid[..., None]
        self.source = self.read
        if self.merged:
            self.source = self.full(SOURCE).gather(1, self.read)

    def _owner(self, member: int) -> int:
        """The row of the stream in which a sample is."""
        return 0 if self.packed else member

    # -- vision rows of a sample ---------------------------------------------------------------------------------------

    def positions(self, member: int) -> Tensor:
        """The column whose position each vision row of a sample has, (left,) int64; −1 for a row without a token."""
        return look_up(self.tokens[member], self.entered[member])

    def slots(self, member: int, columns: Tensor) -> Tensor:
        """The tokens of a sample in whose columns rows are stored: columns, (rows,) int64 -> (rows,) int64."""
        return find(columns, self.entered[member])

    def text_behind(self, member: int, unit: Unit) -> tuple[Tensor, bool]:
        """Return the columns of text behind a unit's first token, and whether they are behind its last row too."""
        sample, sizes, words = self.samples[member], self.sizes[member], self.words[member]
        if sizes is None or (unit.image < 0 and len(sizes) > 1):  # rows of several images
            return words, False
        image = max(unit.image, 0)
        return words[len(words) - sample.text_from[image] :], sample.text_from[image] == sample.text_after[image]

    def put_note(self, member: int, name: str, values: Tensor) -> None:
        """Remember values of a sample's vision rows, (left, …)."""
        self.notes[member][name] = Note(values, len(self.steps[member]))

    def note(self, member: int, name: str) -> Tensor:
        """Return values that were remembered, of the rows that are left, (left, …); zeros for a row of none."""
        values, known = self.notes[member][name]
        assert known <= len(self.steps[member])  # an earlier generation has no notes of a later one
        later = self.steps[member][known:]
        if later:
            source = self.memo.once(lambda: _composed(later), member, known)
            merged = any(step.went is not None for step in later)
            values = note_of(values, source, source if merged else None)
            self.put_note(member, name, values)
        return values

    def _put_notes(self, member: int, notes: Mapping[str, Tensor]) -> None:
        for name, values in notes.items():
            self.put_note(member, name, values)

    # -- all rows ------------------------------------------------------------------------------------------------------

    def put(self, name: str, values: "Tensor | Callable[[Rows], Tensor]", stays: bool = False) -> None:
        """Add a column. It follows the rows through all later cuts: a merged row has the value of what it stands for.

        Args:
            name: Its name.
            values: Values of the rows, (samples, rows, …); or a function that computes them from the rows, when they
                are read.
            stays: Whether a merged row that stands for no token has what was stored where it is now; else it has zeros.
        """
        self.table[name] = RowColumn(values, True, stays)

    def at(self, name: str) -> Tensor:
        """Return a column at these rows, (samples, rows, …). A pad has its first row's values."""
        column = self.table[name]
        if column.by_row:
            return self._by_row(name, column)
        read, full = self.laid_out().read, self.full(name)
        return self.memo.once(lambda: full[torch.arange(len(read), device=self.device)[:, None], read], name, full)

    def full(self, name: str) -> Tensor:
        """Return a column by column of the stream, (samples, columns, …). Where no row is, it means nothing."""
        column = self.table[name]
        if not column.by_row:
            full: Tensor = column.values
            return self.memo.once(column.values, "full", name, full) if callable(full) else full
        values, rows = self._by_row(name, column), self.laid_out()

        def scatter() -> Tensor:
            assert rows.home is not None
            owners = torch.arange(len(rows.home), device=self.device)[:, None]
            full = values.new_zeros(len(rows.home), self.span, *values.shape[2:])
            return full.index_put((owners, rows.home), values)

        return self.memo.once(scatter, "full", name, column.values)

    def _by_row(self, name: str, column: RowColumn) -> Tensor:
        """Return the values of a column that was put in this generation."""
        values: Tensor = column.values
        if callable(values):
            values = self.memo.once(lambda: column.values(self.laid_out()), "by row", name, column.values)
        return values

    def put_vision(self, name: str, values: Mapping[int, Tensor]) -> None:
        """Add or change a column at the vision rows of some samples, (left,) float each; it is 0 at all other rows."""
        places = _joined([(self._owner(member), self.columns[member]) for member in values])
        numbers = torch.cat([own.to(self.device, torch.float32) for own in values.values()])
        before = self.full(name) if name in self.table else numbers.new_zeros(len(self.text), self.span)
        self.table = {**self.table, name: RowColumn(before.index_put(places, numbers), False, False)}

    @property
    def row_counts(self) -> Tensor:
        """`lengths` on the table's device: (samples,) int64."""
        if self.valid is None:
            return self.read.new_full((len(self.read),), self.read.shape[1])
        return self.valid.sum(dim=1)

    def of_sample(self, member: int) -> Tensor:
        """Return the columns of all rows of a sample, (rows,) int64, ascending: `read` without pads."""
        return self.read[member, self.pads(member) :]

    def pads(self, member: int) -> int:
        """Return how many pads are in front of a sample's rows."""
        return self.read.shape[1] - self.lengths[member]

    def gather(self, full: Tensor) -> Tensor:
        """Gather the rows of a full-length tensor: (samples or 1, columns, width) -> (samples, rows, width)."""
        if self.owners is None:
            assert self._first is not None
            return full.index_select(-2, self._first)
        return gather_rows(full, self.read, self.owners)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """Return a copy of `full` with the real rows written back. Dropped columns keep their last value."""
        if self.owners is None:
            assert self._first is not None
            return full.index_copy(1, self._first, rows)
        if self._real is None:
            return full.index_put((self.owners, self.read), rows)
        # A pad writes to a dropped column the value that is already there.
        return full.index_put((self.owners, self.home), torch.where(self._real, rows, full[self.owners, self.home]))

    def reduce(self, value: Any) -> Any:
        """Reduce an argument of a layer to the rows: see `reduce_argument`."""
        return reduce_argument(value, (len(self.read), self.span), self.read, self.owners, self.source.clamp(min=0))

    def pick(self, tables: Any) -> Any:
        """Gather the rows of full-length tables, such as a (cos, sin) pair, each at its source's position."""
        take: Change = self.gather
        if self.source is not self.read:
            take = partial(gather_rows, places=self.source.clamp(min=0), samples=self.owners)
        return on_tensors(tables, take)

    def unpruned(self, past: int) -> Tensor:
        """Return the rows' columns in the unpruned sequence with `past` earlier columns: (samples, rows), −1 for a pad.

        int64. Layers with the same past share one tensor, so values derived from it are computed once.
        """

        def shift() -> Tensor:
            columns = self.read + past if past else self.read
            if self.valid is None:
                return columns
            return columns.masked_fill(~self.valid, -1)

        return self.memo.once(shift, "unpruned", past)

    def last_rows(self, samples: Tensor, columns: Tensor) -> Tensor:
        """Return the column of the last row at or before each of some columns: (count,) int64 each.

        With rows in columns 0, 1, 4 and 6 it is 4 for column 5 and 6 for column 6. A column with no row before it
        returns itself.
        """
        left = self.read[samples]  # (count, rows), ascending
        ranks = torch.searchsorted(left, columns[:, None], right=True) - 1
        last = left.gather(1, ranks.clamp(min=0))  # (count, 1)
        return torch.where(ranks < 0, columns[:, None], last)[:, 0]

    def that_last(self, final: "Rows") -> Tensor:
        """Return which of these rows the final ones are, or stand for: (samples, rows) bool, False for pads."""
        final = final.on(self.device)
        wanted = final.columns_left.gather(1, self.source.clamp(min=0))
        if self.merged:  # a row without a token, such as a CLS, keeps its column from cut to cut
            others = final._marked(final.read, final.source < 0)
            wanted = torch.where(self.source < 0, others.gather(1, self.read), wanted)
        return wanted if self.valid is None else wanted & self.valid

    @property
    def columns_left(self) -> Tensor:
        """Which columns' tokens have a row, (samples, columns) bool."""
        return self.memo.once(lambda: self._marked(self.source, self.source >= 0), "left")

    def _marked(self, columns: Tensor, which: Tensor) -> Tensor:
        """Mark the columns of some rows, (samples, rows) each: (samples, columns) bool."""
        if self.valid is not None:
            which = which & self.valid
        marks = self.text.new_zeros(len(self.text), self.span + 1)  # others are marked in the extra last column
        return marks.scatter(1, torch.where(which, columns, self.span), True)[:, : self.span]

    # -- positions -----------------------------------------------------------------------------------------------------

    def window_columns(self, past: int, shift: Tensor | None, first: Tensor) -> Tensor | None:
        """Return the columns in which a window counts the rows, (samples, rows) int64. A pad has its first row's.

        These are the columns of the tokens that the rows stand for. Or, if rows have a column `COUNTED`, what that
        says, counted from each sample's first row. None: the columns in which the rows are stored.

        Args:
            past: Earlier columns.
            shift: See `PrunedLayer`; of the earlier columns.
            first: See `Forward`.
        """
        if COUNTED not in self.table and self.source is self.read and shift is None:
            return None

        def count() -> Tensor:
            if COUNTED in self.table:
                first_of = first.to(self.device) + past
                columns = first_of[:, None] + self.at(COUNTED)
            else:
                columns = torch.where(self.source < 0, self.read, self.source) + past
            return columns if shift is None else columns - shift.to(columns.device)[:, None]

        return self.memo.once(count, "window", past, shift)

    @property
    def disorder(self) -> bool:
        """Whether rows may leave a window in another order than that of the columns in which they are stored.

        So may pads between new numbers, which are none.
        """
        return self.source is not self.read or (COUNTED in self.table and self.valid is not None)

    @property
    def layout(self) -> Hashable:
        """All facts on the host that layers depend on, beside the samples."""
        names = tuple([(tuple(notes), tuple(about)) for notes, about in zip(self.notes, self.about, strict=True)])
        return self.generation, self.sizes, self.counts, names, tuple(self.table)

    # -- copies --------------------------------------------------------------------------------------------------------

    def on(self, device: torch.device) -> "Rows":
        """Return these rows on a device. A model may be spread over several."""
        if device == self.device:
            return self
        return self.memo.once(lambda: self.map(lambda tensor: tensor.to(device)), device)

    def map(self, change: Change) -> "Rows":
        """Return the table with `change` applied to its tensors: on another device, or a recording's copies."""
        of = partial(on_tensors, change=change)
        copy = replace(
            self,
            text=change(self.text),
            entered=of(self.entered),
            words=of(self.words),
            runs=of(self.runs),
            columns=of(self.columns),
            tokens=of(self.tokens),
            first_layer=list(self.first_layer),
            about=tuple([of(about) for about in self.about]),
            notes=tuple(
                [{name: Note(change(own.values), own.steps) for name, own in each.items()} for each in self.notes]
            ),
            steps=tuple([tuple([step.map(change) for step in steps]) for steps in self.steps]),
            table={name: self._mapped(name, change) for name in self.table},
            by_sample=of(self.by_sample),
            home=of(self.home),
            read=of(self.read),
            valid=of(self.valid),
            source=of(self.source),
            owners=of(self.owners),
            memo=Memo(),
            _first=of(self._first),
            _real=of(self._real),
        )
        if self.source is self.read:
            copy.source = copy.read
        return copy

    def _mapped(self, name: str, change: Change) -> RowColumn:
        column = self.table[name]
        if column.by_row and callable(column.values):  # computed from the copy
            return column
        return column._replace(values=change(column.values if column.by_row else self.full(name)))

    def longer(self, pads: int, samples: Sequence[Sample]) -> "Rows":
        """Return the table with `pads` more columns of text behind each sample, as they enter."""
        more = torch.arange(self.span, self.span + pads, device=self.device).expand(len(self.text), -1)
        added = partial(pad, pad=(0, pads))
        longer = replace(
            self,
            samples=samples,
            span=self.span + pads,
            text=added(self.text, value=True),
            words=tuple([send(sample.words, self.device) for sample in samples]),
            runs=on_tensors(self.runs, added),
            table={
                name: own if own.by_row else own._replace(values=torch.cat((self.full(name), more), dim=1))
                for name, own in self.table.items()
            },
            memo=Memo(),
        )
        if self.dropped:  # in the tower
            longer._lay_out()
        return longer

    def shorter(self, pads: int, cut: Change, samples: Sequence[Sample]) -> "Rows":
        """Return the table of a finished forward without the last `pads` columns and rows of each sample.

        Args:
            pads: How many.
            cut: Removes as many from a tensor's end.
            samples: The batch without them.
        """
        shorter = replace(self, samples=samples, span=self.span - pads, memo=Memo())
        shorter.text = self.text[:, :-pads]
        shorter.words = tuple([send(sample.words, self.device) for sample in samples])
        shorter.lengths = tuple([length - pads for length in self.lengths])
        if self.home is not None:
            shorter.home, shorter.read, shorter.source = map(cut, (self.home, self.read, self.source))
            shorter.valid = on_tensors(self.valid, cut)
            shorter._first = shorter.read[0]
            shorter._real = None if shorter.valid is None else shorter.valid[..., None]
        return shorter


class Merge(NamedTuple):
    """Rows of one sample that a cut merged or moved, in the order in which they are stored.

    Attributes:
        member: Index of the sample.
        rows: (rows, width).
        stored: The columns in which they are stored, (rows,) int64.
        came_from: The columns in which the rows were stored that they stand for, (rows,) int64.
    """

    member: int
    rows: Tensor
    stored: Tensor
    came_from: Tensor


def find(columns: Tensor, among: Tensor) -> Tensor:
    """Return the index of each column among ascending ones, which have it: (some,) int64 -> (some,) int64."""
    return torch.searchsorted(among, columns)


def _composed(steps: Sequence[Step]) -> Tensor:
    """Return the row before all steps that each row was, (rows,) int64; −1 for none: 0 2 of the rows 1 3 4 are 1 4."""
    source = steps[0].source
    for step in steps[1:]:
        source = look_up(step.source, source) if step.went is not None else source[step.source]
    return source


def _joined(places: Sequence[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the owner and the column of every row, (rows of all,) int64 each."""
    owners = [columns.new_full(columns.shape, owner) for owner, columns in places]
    return torch.cat(owners), torch.cat([columns for _, columns in places])


def _runs_of(sample: Sample, span: int) -> Tensor | None:
    """Return the run of each column of a sample, (columns,) int64, if text parts the tokens of an image; else None."""
    if not len(sample.runs) or int(sample.runs[-1]) + 1 <= len(sample.media):
        return None
    runs = torch.zeros(span, dtype=torch.int64)
    runs[sample.vision] = sample.runs
    return runs
