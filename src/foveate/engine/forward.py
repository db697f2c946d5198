"""Each layer: which columns of the full-length stream are left as rows, and the state of one forward of the model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.tensors import Change, Memo, on_tensors, send
from foveate.engine import guards
from foveate.engine.cache import Coming, PrunedLayer
from foveate.engine.handed import Original, Streams, at_rows, gather_rows
from foveate.engine.left import Left, lefts_of
from foveate.engine.program import Program
from foveate.engine.prompt_samples import Sample
from foveate.engine.trace import PrefillRecord, StageRecord, Where
from foveate.errors import UnsupportedError
from foveate.families.base import Family

ROW_TENSORS = ("columns", "source", "valid", "_real", "_numbers", "owners", "_first")
"""Attributes of a `RowMap` that are tensors or nested tensors; some may be None."""


class RowMap:
    """The rows that a layer processes, as columns of the call's full-length stream.

    A ragged batch is padded on the left, because generation reads the last row. A pad repeats the sample's first row,
    so its numbers stay finite; no row attends to it. Example: of six columns, the first sample lost one and the second
    three.

        columns   0 1 3 4 5        2 2 2 4 5
        valid     1 1 1 1 1        0 0 1 1 1
        lengths   5                3

    Attributes:
        columns: (samples, rows) int64, the column each row is stored in, ascending within a sample.
        lengths: Real rows of each sample.
        valid: (samples, rows) bool, False for pads; None if there are none.
        source: (samples, rows) int64, the column whose position each row has, −1 for none; `columns` unless rows were
            merged or reordered.
        owners: (samples, 1) int64, the index of each sample; None if there is only one.
        numbered: The map, this or an earlier one, at which rows were last renumbered; None while all rows keep their
            original positions.
    """

    def __init__(self, left: Tensor, lengths: Sequence[int], source: Tensor | None = None) -> None:
        """Build the map from the columns that are left.

        Args:
            left: (samples, columns) bool, the columns that are left.
            lengths: Number of columns left of each sample.
            source: (samples, columns) int64, the column whose position each column's row has, −1 for none; None: each
                column's own.
        """
        device = left.device
        self.lengths = tuple(lengths)
        longest = max(self.lengths)
        # A stable sort of 0s and 1s moves dropped columns to the front: of columns 0 to 5 with 2 and 4 dropped it makes
        # 2 4 0 1 3 5. The last `longest` are the rows. A shorter sample has some dropped columns in front: its pads.
        order = left.to(torch.uint8).sort(dim=1, stable=True).indices
        self.columns = order[:, left.shape[1] - longest :]  # (samples, longest)
        self.valid: Tensor | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        if min(self.lengths) < longest:
            own = self.columns  # at a pad: a dropped column
            self.valid = left.gather(1, own)
            self._real = self.valid[..., None], own
            # Pads repeat the first row. A sample without rows repeats its last column.
            pads = (longest - self.counts).clamp(max=longest - 1)
            self.columns = torch.where(self.valid, own, own.gather(1, pads[:, None]))
        self.source = self.columns if source is None else source.gather(1, self.columns)
        self.numbered: RowMap | None = None
        self._numbers: Tensor | None = None
        self._span = left.shape[1]
        # For a single sample the columns suffice, with fewer operators.
        self.owners = torch.arange(len(left), device=device)[:, None] if len(left) > 1 else None
        self._first = self.columns[0]
        self._copies: dict[torch.device, RowMap] = {device: self}
        self.memo = Memo()

    @property
    def counts(self) -> Tensor:
        """`lengths` on the rows' device: (samples,) int64."""
        if self.valid is None:
            return self.columns.new_full((len(self.columns),), self.columns.shape[1])
        return self.valid.sum(dim=1)

    def number_on(self, before: "RowMap") -> None:
        """Carry over the position numbers that rows have in the map before this one, if any."""
        if before.numbered is None:
            return
        self.numbered = before.numbered
        # A pad repeats the first row, so it writes the same number.
        ranks = before._ranks(before.columns.device).clamp(min=0).expand_as(before.columns)
        # Merged rows are stored in other columns than their source's; a row without a source keeps its column. Rows
        # without a source write to the extra slot `_span`. Example: rows in columns 0 2 with sources 0 3 and ranks 0 1
        # give by_source 0 · · 1 and by_column 0 · 1 ·.
        by_source = ranks.new_zeros(len(ranks), self._span + 1)
        by_source.scatter_(1, before.source.masked_fill(before.source < 0, self._span), ranks)
        by_column = ranks.new_zeros(len(ranks), self._span).scatter_(1, before.columns, ranks)
        device = self.source.device
        own = by_source.to(device).gather(1, self.source.clamp(min=0))
        self._numbers = torch.where(self.source < 0, by_column.to(device).gather(1, self.columns), own)

    def on(self, device: torch.device) -> "RowMap":
        """Return this map with its tensors on `device`, cached for the next layer there."""
        if device not in self._copies:
            copy = self.with_tensors(lambda tensor: tensor.to(device))
            copy._copies = self._copies  # all copies share one table of copies
            self._copies[device] = copy
        return self._copies[device]

    def with_tensors(self, change: Change) -> "RowMap":
        """Return this map with `change` applied to its tensors."""
        copy = object.__new__(RowMap)
        copy.__dict__.update(self.__dict__)
        for name in ROW_TENSORS:
            setattr(copy, name, on_tensors(getattr(self, name), change))
        copy.memo, copy._copies = Memo(), {copy.columns.device: copy}
        return copy

    def unpruned(self, past: int) -> Tensor:
        """Return the rows' columns in the unpruned sequence with `past` earlier columns: (samples, rows), −1 for a pad.

        int64. Layers with the same past share one tensor, so values derived from it are computed once.
        """

        def shift() -> Tensor:
            columns = self.columns + past if past else self.columns
            if self.valid is None:
                return columns
            return columns.masked_fill(~self.valid, -1)

        return self.memo.once(shift, "unpruned", past)

    def window_columns(self, past: int, shift: Tensor | None, first: Tensor) -> Tensor | None:
        """Return the columns in which a window counts the rows, (samples, rows) int64. A pad has its first row's.

        With `positions="keep"` these are the columns of the tokens that the rows stand for, else the new numbers: the
        columns of a prompt that was that short. None: the columns in which the rows are stored.

        Args:
            past: Earlier columns.
            shift: See `PrunedLayer`; of the earlier columns.
            first: See `Forward`.
        """
        if self.numbered is None and self.source is self.columns and shift is None:
            return None

        def count() -> Tensor:
            if self.numbered is not None:
                first_of = first.to(self.columns.device) + past
                columns = first_of[:, None] + self._ranks(self.columns.device).clamp(min=0)
            else:
                columns = torch.where(self.source < 0, self.columns, self.source) + past
            return columns if shift is None else columns - shift.to(columns.device)[:, None]

        return self.memo.once(count, "window", past, shift)

    @property
    def disorder(self) -> bool:
        """Whether rows may leave a window in another order than that of the columns in which they are stored.

        So may pads between new numbers, which are none.
        """
        return self.source is not self.columns or (self.numbered is not None and self.valid is not None)

    def gather(self, full: Tensor) -> Tensor:
        """Gather the rows of a full-length tensor: (samples or 1, columns, width) -> (samples, rows, width)."""
        if self.owners is None:
            return full.index_select(-2, self._first)
        return gather_rows(full, self.columns, self.owners)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """Return a copy of `full` with the real rows written back. Dropped columns keep their last value."""
        if self._real is None and self.owners is None:
            return full.index_copy(1, self._first, rows)
        if self._real is None:
            return full.index_put((self.owners, self.columns), rows)
        # A pad writes to a dropped column the value that is already there.
        real, own = self._real
        return full.index_put((self.owners, own), torch.where(real, rows, full[self.owners, own]))

    def at_rows(self, value: Any) -> Any:
        """Reduce an argument of a layer to the rows: see `at_rows`."""
        shape = len(self.columns), self._span
        return at_rows(value, shape, self.columns, self.owners, self.source.clamp(min=0))

    def last_rows(self, samples: Tensor, columns: Tensor) -> Tensor:
        """Return the column of the last row at or before each of some columns: (count,) int64 each.

        With rows in columns 0, 1, 4 and 6 it is 4 for column 5 and 6 for column 6. A column with no row before it
        returns itself.
        """
        left = self.columns[samples]  # (count, rows), ascending
        ranks = torch.searchsorted(left, columns[:, None], right=True) - 1
        last = left.gather(1, ranks.clamp(min=0))  # (count, 1)
        return torch.where(ranks < 0, columns[:, None], last)[:, 0]

    def pick(self, tables: Any) -> Any:
        """Gather the rows of full-length tables, such as a (cos, sin) pair, each at its source's position."""
        take: Callable[[Tensor], Tensor] = self.gather
        if self.source is not self.columns:
            take = partial(gather_rows, places=self.source.clamp(min=0), samples=self.owners)
        return on_tensors(tables, take)

    def number_from(self, first: Tensor) -> Tensor:
        """Return position ids of the rows, counted from `first`, (samples,): (samples, rows) int64."""
        return first[:, None] + self._ranks(first.device)

    def _ranks(self, device: torch.device) -> Tensor:
        """Each row's number, or its index among the real rows of its sample: (rows,) or (samples, rows) int64."""
        if self._numbers is not None:
            return self._numbers.to(device)
        rows = self.columns.shape[1]
        if self.valid is None:
            return torch.arange(rows, device=device)
        # With one pad in front, ranks 0 1 2 become −1 0 1.
        return torch.arange(-rows, 0, device=device) + self.counts.to(device)[:, None]

    def shift(self, before: Tensor | None, live: Tensor) -> Tensor:
        """Return by how much positions have shrunk after these rows: (samples,) int64, shared by all layers.

        Args:
            before: By how much they had shrunk on this layer's cache before; None: not at all.
            live: Columns of the call that are not padding, per sample: (samples,) int64.
        """

        def shift() -> Tensor:
            numbered = self.numbered or self
            device = self.columns.device if before is None else before.device
            gone = live.to(device) - numbered.counts.to(device)
            if before is None:
                return gone
            return gone + before

        return self.memo.once(shift, "shift", before)


UNSET = torch.zeros(0, 0, dtype=torch.bool)


@dataclass(slots=True, eq=False)
class Segment:
    """Consecutive layers that get the same arguments and whose caches hold the same columns: prepared once for all.

    Used only if no layer's forward is replaced by other code, which might move arguments to other devices.

    Attributes:
        rows: Their rows; None in a decode step, in which they run on all columns.
        mask, tables: What the model passes to them.
        given: What they get instead, by name.
        stored: The first layer's cache; None if the model runs without one.
        announced: What their caches are told: see `PrunedLayer.announce`.
        kind: Their class.
        device: Where they run.
        handed: The latest layer's output, if it passed the rows on directly; None: they are back in the full-length
            stream.
        full: The full-length stream before the rows are written back, while `handed` is set.
    """

    rows: RowMap | None
    mask: Any
    tables: Any
    given: dict[str, Any]
    stored: PrunedLayer | None
    announced: Coming
    kind: type
    device: torch.device
    handed: Tensor | None = None
    full: Any = None

    def holds(self, layer: PrunedLayer) -> bool:
        """Return whether a layer's cache holds the same columns as the first layer's."""
        first = self.stored
        assert first is not None
        same = layer.base is first.base and layer.base_end == first.base_end and layer.ragged is first.ragged
        return same and layer.shift is first.shift and layer.window_columns is first.window_columns

    def put_back(self, index: int, hidden: Tensor) -> Tensor:
        """Return the input of layer `index` with rows that were passed on written back into the full-length stream."""
        if self.handed is None:
            return hidden
        if self.handed is not hidden:
            guards.refuse_changed_rows(index)
        assert self.rows is not None
        return self.rows.scatter(self.full, hidden)


@dataclass(eq=False)
class Arrival:
    """A forward on its way to the decoder, with pixels and encoder outputs; released before the layers run.

    Attributes:
        last_only: Whether only the last column's logits are requested, as `generate` does.
        arguments: Arguments of the core's forward, by name.
        ids: The prompt's ids, (samples, columns); None if it was given as embeddings.
        encoded: Outputs of the `get_*_features` calls, by modality.
        image_lengths: Vision tokens of each image of each sample, by modality, if only the prompt tells them.
        placeholders: Where the vision tokens are, (samples, columns) bool, by modality.
        splits: Whether chunked prefill will cut an image in two, or off the question that the method reads.
        goes_on: Whether this is a chunk of a prompt other than the first.
        behind_image: Whether the previous forward on this cache ended in an image or right behind it.
        behind_cut: Whether tokens had been dropped there.
        position_ids: (samples or 1, columns); None until the model has made them, and if no stage renumbers rows.
        unseen: What may have put pictures into the prompt past `get_*_features`, in words; empty: nothing did.
        generate_ids: The ids that `generate` feeds, (samples, columns). The model may still get embeddings.
        targets: What the model's loss predicts at each column, (samples, columns) int64, −100 for nothing; or None.
    """

    last_only: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    ids: Tensor | None = None
    encoded: dict[str, Any] = field(default_factory=dict)
    image_lengths: dict[str, list[list[int]] | None] = field(default_factory=dict)
    placeholders: list[tuple[str, Tensor]] = field(default_factory=list)
    splits: bool = False
    goes_on: bool = False
    behind_image: bool = False
    behind_cut: bool = False
    position_ids: Tensor | None = None
    unseen: str = ""
    generate_ids: Tensor | None = None
    targets: Tensor | None = None


@dataclass(eq=False)
class Outcome:
    """The result of a forward, layer by layer. After the last layer nothing else is read.

    Attributes:
        record: What the trace keeps; None for a decode step.
        lefts: What is left of each sample with vision tokens.
        rows: The rows that the next layer processes; None while nothing is dropped.
        row_maps: The rows that each layer so far processed.
    """

    record: PrefillRecord | None = None
    lefts: list[Left] = field(default_factory=list)
    rows: RowMap | None = None
    row_maps: list[RowMap | None] = field(default_factory=list)

    def on(self, device: torch.device) -> list[Left]:
        """Return the samples that still have vision rows, with their tensors moved to a device."""
        lefts = [left for left in self.lefts if len(left)]
        for left in lefts:
            left.to(device)
        return lefts


@dataclass(eq=False)
class Forward:
    """One forward in the decoder: a prefill, a later turn or a decode step.

    Attributes:
        program: The method's stages.
        family: The model's family.
        outcome: The result so far.
        position_ids: See `Arrival`.
        drops: Whether tokens may be dropped in this forward.
        live: (samples, unpruned columns), nonzero where a column is not padding; None if there is no padding.
        memo: Masks, tables and copies that several layers share.
        cache: The cache that the first layer got; None if the model runs without one.
        caches: Whether the model was told to cache.
        plans: Vision tokens that each layer will process, per sample; None if unknown beforehand.
        noted: The latest prefill's record, to which the reads of decode steps are added.
        steps: In a step of text that reads the whole cache: its pruned layers (None: another kind of layer). Else
            empty.
        segment: The segment of previous layers that the next layer may continue; None if it cannot.
        hands_on: Whether layers pass rows on to one another.
        unpadded: (samples, span) int64, 1 where a column of a prompt is not padding; on the prompt's device.

    Attributes for limited reads in decode steps (if the method has a stage for that):
        ends_turn: Whether steps after this prompt may read less of the caches.
        kinds: (samples, unpruned columns) int8, see `PrunedLayer`; in a step, for the layer that decides.
        asking: (samples, span) bool, the prompt's text whose attention counts, or a step's new rows.
        most: At most this many of them in any sample.
        asked: Attention from the prompt's text to every column, (samples, unpruned columns) float32, by layer. Before
            the first layer it is the previous chunk's.

    Attributes for the rows that are left (if `drops`):
        span, count: Columns of the forward, and samples.
        samples: The batch.
        additions: What the decoder adds to vision tokens after its first layers (see `Family.later_additions`).
        image_ends: Sample and column of the last token of every run of vision tokens, (2, runs) int64; None if only
            the last column will be read.
        text: (samples, columns) bool, columns of text.
        first: (samples,) int64, each sample's first column that is not padding.
        entering_rows: (samples,) int64, rows of each sample before anything is dropped.
        entered: (samples, columns) bool, columns of the entering rows; on the host.
    """

    program: Program
    family: Family
    outcome: Outcome = field(default_factory=Outcome)
    position_ids: Tensor | None = None
    drops: bool = False
    live: Tensor | None = None
    memo: Memo = field(default_factory=Memo)
    cache: Any = None
    caches: bool = False
    plans: Sequence[Sequence[int] | None] = ()
    noted: PrefillRecord | None = None
    steps: Sequence[PrunedLayer | None] = ()
    segment: Segment | None = None
    hands_on: bool = False
    unpadded: Tensor | None = None

    ends_turn: bool = False
    kinds: Tensor = UNSET
    asking: Tensor = UNSET
    most: int = 0
    asked: dict[int, Tensor] = field(default_factory=dict)

    span: int = 0
    count: int = 0
    samples: list[Sample] = field(default_factory=list)
    additions: list[Tensor] | None = None
    image_ends: Tensor | None = None
    text: Tensor = UNSET
    first: Tensor = UNSET
    entering_rows: Tensor = UNSET
    entered: Tensor = UNSET

    @property
    def backend(self) -> str:
        """Name of the attention implementation."""
        return str(self.family.text.config._attn_implementation)

    def drop_in(self, embeds: Tensor, last_only: bool) -> None:
        """Start a forward that drops tokens, on embeddings (samples, columns, width); see `Arrival`."""
        samples, self.drops = self.samples, True
        self.outcome.lefts = lefts_of(samples, embeds.device)
        if not last_only:
            # A run ends where the next token belongs to another: runs 0 0 1 end at the second and third token.
            ends = [sample.vision.numpy()[np.diff(sample.runs.numpy(), append=-1) != 0] for sample in samples]
            owners = np.repeat(np.arange(len(samples)), [len(columns) for columns in ends])
            self.image_ends = send(torch.from_numpy(np.stack((owners, np.concatenate(ends)))), embeds.device)
        text, entered = np.zeros((2, len(samples), self.span), bool)
        for row, sample in enumerate(samples):
            columns = sample.text.numpy()
            text[row, columns] = entered[row, columns] = True
            entered[row, sample.vision.numpy()] = True
        # argmax returns the first True: padding, padding, text, image gives column 2.
        numbers = np.stack((entered.argmax(axis=1), entered.sum(axis=1)))
        self.first, self.entering_rows = send(torch.from_numpy(numbers), embeds.device)
        self.text = send(torch.from_numpy(text), embeds.device)
        self.entered = torch.from_numpy(entered)

    @property
    def ends_in_vision(self) -> bool:
        """Whether any sample ends in a vision token."""
        return any(sample.ends for sample in self.samples)

    @property
    def present(self) -> RowMap:
        """The rows that are left, even if nothing was dropped."""
        return self.outcome.rows or self.memo.once(self._rows_left, "present")

    def vision_left(self) -> tuple[int, ...]:
        """Return the vision tokens left of each sample, including those that always stay."""
        return self.with_left([sample.fixed for sample in self.samples])

    def with_left(self, others: list[int]) -> tuple[int, ...]:
        """Return the rows of each sample: its entry in `others` plus the vision tokens left of it."""
        counts = list(others)
        for left in self.outcome.lefts:
            counts[left.member] += len(left)
        return tuple(counts)

    def lay_out(self, renumbers: bool) -> None:
        """Set the rows that the next layers process to those that are left, renumbered or not."""
        before, self.outcome.rows = self.outcome.rows, self._rows_left()
        if renumbers:
            self.outcome.rows.numbered = self.outcome.rows  # each row's position is its index among those left
        elif before is not None:
            self.outcome.rows.number_on(before)

    def _rows_left(self) -> RowMap:
        lengths = self.with_left([len(sample.text) for sample in self.samples])
        if not any(lengths):
            raise UnsupportedError(
                "Every token of the prompt was dropped: the prompt has no text, and no vision token was kept. "
                "Always keep a token (min_keep=1), or add text."
            )
        lefts = self.outcome.lefts
        left = self.text.to(lefts[0].source.device)  # (samples, columns): text first, then each sample's rows
        places = places_of(lefts)
        left = left.index_put(places, left.new_ones(()))
        source: Tensor | None = None
        if any(one.parent is not None for one in lefts):
            source = torch.arange(self.span, device=left.device).expand_as(left)
            source = source.index_put(places, torch.cat([one.positions() for one in lefts]))
        return RowMap(left, lengths, source)

    def move_additions(self, left: Left, layer: int, came_from: Tensor) -> None:
        """Move the later additions of merged rows along with their tokens to the rows' new places."""
        if self.additions is None:
            return
        if not isinstance(self.additions, list):
            raise UnsupportedError(
                "This model adds features of its pictures before several layers. foveate cannot add these to rows "
                "that are merged or that have text between them. Use a method that drops between layers and does not "
                "merge."
            )
        # Additions are (vision tokens of all samples, width): each sample's ordinals are offset by its start.
        start = sum([len(sample.vision) for sample in self.samples[: left.member]])
        for depth in range(layer, len(self.additions)):
            added = self.additions[depth]
            target, origin = (slots.to(added.device) + start for slots in (left.slots, came_from))
            self.additions[depth] = added.index_put((target,), added[origin])

    def record_cut(self, where: Where, layer: int | None, before: tuple[int, ...]) -> None:
        """Append a cut to the trace."""
        assert self.outcome.record is not None
        left_of = {left.member: left.source_and_parent() for left in self.outcome.lefts}
        # If a sample is not there, none of its vision tokens may be dropped.
        pairs = [left_of.get(member) or (torch.arange(each.fixed), None) for member, each in enumerate(self.samples)]
        origin, assign = zip(*pairs, strict=True)
        self.outcome.record.stages.append(StageRecord(where, layer, before, self.vision_left(), origin, assign))

    def final(self) -> tuple[Tensor, Tensor]:
        """Return what is left at the end.

        Returns:
            Two (samples, columns) bool tensors. First the columns whose token has a row, text included. Second the
            columns that hold a row without a token, such as a CLS, which keeps its column from cut to cut.
        """
        # 1 at text and 0 at vision tokens; then add the number of rows that stand for each column.
        final = torch.ones_like(self.text, dtype=torch.int32)
        others = torch.zeros_like(self.text, dtype=torch.bool)
        for left in self.outcome.lefts:
            vision, source = left.vision.to(final.device), left.source.to(final.device)
            final[left.member, vision] = 0
            # A row without a token reads token 0 here and adds 0 to it. Writing instead would erase token 0.
            final[left.member].index_add_(0, vision[source.clamp(min=0)], (source >= 0).to(final.dtype))
            others[left.member, left.columns.to(final.device)] = source < 0
        return final > 0, others


def places_of(lefts: Sequence[Left]) -> tuple[Tensor, Tensor]:
    """Return the sample and the column of every row that is left, (rows of all,) int64 each."""
    columns = [left.columns for left in lefts]
    owners = [own.new_full(own.shape, left.member) for own, left in zip(columns, lefts, strict=True)]
    return torch.cat(owners), torch.cat(columns)


@dataclass(slots=True, eq=False)
class LayerCall:
    """One decoder layer's call, as the model makes it.

    Attributes:
        index: The layer's index.
        module: The layer.
        entered: Its full-length input, (samples, columns, width).
        hidden: That input with merged rows written into it, once the stages before the layer have cut.
        kwargs: Other arguments by name; masks, tables and ids are replaced before the layer runs.
        stored: The layer's cache, if tokens of it were dropped.
        cache: The model's cache; None if it runs without one.
        streams: How to fold several streams of hidden states into one; None if there is one.
    """

    index: int
    module: nn.Module
    entered: Tensor
    hidden: Tensor
    kwargs: dict[str, Any]
    stored: PrunedLayer | None
    cache: Any
    streams: Streams | None = None

    @property
    def past(self) -> int:
        """Unpruned columns before this call if tokens of its cache were dropped; else 0."""
        if self.stored is None:
            return 0
        return self.stored.seen

    @property
    def shift(self) -> Tensor | None:
        """By how much positions have shrunk on the layer's cache; None: not at all."""
        return self.stored and self.stored.shift

    def run(self, original: Original, hidden: Tensor) -> Any:
        """Call the layer itself on these rows."""
        return original(hidden, **self.kwargs)

    @property
    def more(self) -> dict[str, Any]:
        """Arguments that ordinary layers do not get, by name."""
        return {name: value for name, value in self.kwargs.items() if name not in guards.LAYER_ARGUMENTS}
