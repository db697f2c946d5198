"""Each layer: which columns of the full-length stream are left as rows, and the state of one forward of the model."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foveate.core.tensors import Change, Memo, on_tensors, send
from foveate.engine import guards
from foveate.engine.buckets import Bucket, buckets_of
from foveate.engine.cache import PrunedLayer
from foveate.engine.handed import Original, Streams, at_rows, rows_of
from foveate.engine.program import Program
from foveate.engine.samples import Sample
from foveate.engine.trace import PrefillRecord, StageRecord, Where
from foveate.errors import UnsupportedError
from foveate.families.base import Family

TENSORS = ("columns", "source", "valid", "_real", "_numbers", "_samples", "_first")
"""The attributes of a map that are tensors, or nests of them; some may be None."""


class RowMap:
    """The rows a layer processes, as columns of the call's full-length stream.

    A ragged batch is padded on the left, since generation reads the last row. A pad repeats the sample's first row, so
    its numbers stay finite, and it is no row's key. An example: of six columns the first sample has lost one, the
    second three.

        columns   0 1 3 4 5        2 2 2 4 5
        valid     1 1 1 1 1        0 0 1 1 1
        lengths   5                3

    Attributes:
        columns: (samples, rows) int64, the column each row is stored in, ascending in a sample.
        lengths: Real rows of each sample.
        valid: (samples, rows) bool, False for pads; None if there are none.
        source: (samples, rows) int64, the column whose position each row has, −1 for none; `columns` unless rows were
            merged or reordered.
        numbered: The map whose rows were numbered anew last, this one or an earlier one; None while all rows have the
            positions that they entered with.
    """

    def __init__(self, left: Tensor, lengths: Sequence[int], source: Tensor | None = None) -> None:
        """Make the map of what is left.

        Args:
            left: (samples, columns) bool, which columns are left.
            lengths: How many of each sample.
            source: (samples, columns) int64, the column whose position each column's row has, −1 for none; None: its
                own.
        """
        device = left.device
        self.lengths = tuple(lengths)
        longest = max(self.lengths)
        # A stable sort of 0s and 1s brings the columns that have left to the front: of the columns 0 to 5 with 2 and 4
        # dropped it makes 2 4 0 1 3 5, and the last `longest` are the rows. In a shorter sample some dropped columns
        # are among them, in front: these are its pads.
        order = left.to(torch.uint8).sort(dim=1, stable=True).indices
        self.columns = order[:, left.shape[1] - longest :]  # (samples, longest)
        self.valid: Tensor | None = None
        self._real: tuple[Tensor, Tensor] | None = None
        if min(self.lengths) < longest:
            own = self.columns  # a pad's is one that was dropped
            self.valid = left.gather(1, own)
            self._real = self.valid[..., None], own
            # Pads repeat the first row. A sample of no rows at all repeats the last column.
            pads = (longest - self.counts).clamp(max=longest - 1)
            self.columns = torch.where(self.valid, own, own.gather(1, pads[:, None]))
        self.source = self.columns if source is None else source.gather(1, self.columns)
        self.numbered: RowMap | None = None
        self._numbers: Tensor | None = None
        self._span = left.shape[1]
        # Of one sample the columns alone are enough, which takes fewer operators.
        self._samples = torch.arange(len(left), device=device)[:, None] if len(left) > 1 else None
        self._first = self.columns[0]
        self._copies: dict[torch.device, RowMap] = {device: self}
        self.memo = Memo()

    @property
    def counts(self) -> Tensor:
        """`lengths` where the rows are: (samples,) int64."""
        if self.valid is None:
            return self.columns.new_full((len(self.columns),), self.columns.shape[1])
        return self.valid.sum(dim=1)

    def number_on(self, before: "RowMap") -> None:
        """Let the rows keep the numbers that they have in the map before this one, if they have any."""
        if before.numbered is None:
            return
        self.numbered = before.numbered
        ranks = before._numbers
        if ranks is None:
            ranks = before._ranks(before.columns.device)
        # A pad repeats the first row, so it writes that one's number.
        ranks = ranks.clamp(min=0).expand_as(before.columns)
        # Merged rows are stored in other columns than those they stand for; one that stands for none stays where it is.
        by_source = ranks.new_zeros(len(ranks), self._span + 1)
        by_source.scatter_(1, before.source.masked_fill(before.source < 0, self._span), ranks)
        by_column = ranks.new_zeros(len(ranks), self._span).scatter_(1, before.columns, ranks)
        device = self.source.device
        own = by_source.to(device).gather(1, self.source.clamp(min=0))
        self._numbers = torch.where(self.source < 0, by_column.to(device).gather(1, self.columns), own)

    def on(self, device: torch.device) -> "RowMap":
        """This map with its tensors on `device`, kept for the next layer there."""
        if device not in self._copies:
            copy = self.with_tensors(lambda tensor: tensor.to(device))
            copy._copies = self._copies  # all copies share one table of copies
            self._copies[device] = copy
        return self._copies[device]

    def with_tensors(self, change: Change) -> "RowMap":
        """This map with other tensors."""
        copy = object.__new__(RowMap)
        copy.__dict__.update(self.__dict__)
        for name in TENSORS:
            setattr(copy, name, on_tensors(getattr(self, name), change))
        copy.memo, copy._copies = Memo(), {copy.columns.device: copy}
        return copy

    def without(self, pads: int, cut: Change) -> "RowMap":
        """This map of samples that have had so many pads behind them; `cut` takes that many off a row's end."""
        copy = self.with_tensors(cut)
        copy.lengths, copy._span = tuple([length - pads for length in self.lengths]), self._span - pads
        copy._samples = self._samples
        if self._real is not None and copy.valid is not None:
            copy._real = copy.valid[..., None], cut(self._real[1])
        return copy

    def unpruned(self, past: int) -> Tensor:
        """Columns of the rows with `past` columns before this call: (samples, rows) int64, −1 for a pad.

        The same tensor for every layer with the same past, so that what is derived from it is made once.
        """

        def shift() -> Tensor:
            columns = self.columns + past if past else self.columns
            if self.valid is None:
                return columns
            return columns.masked_fill(~self.valid, -1)

        return self.memo.once(shift, "unpruned", past)

    def gather(self, full: Tensor) -> Tensor:
        """Rows of a full-length tensor: (samples or 1, columns, width) -> (samples, rows, width)."""
        if self._samples is None:
            return full.index_select(-2, self._first)
        return rows_of(full, self.columns, self._samples)

    def scatter(self, full: Tensor, rows: Tensor) -> Tensor:
        """A copy of `full` with the real rows written back; columns that were dropped keep their last value."""
        if self._real is None and self._samples is None:
            return full.index_copy(1, self._first, rows)
        if self._real is None:
            return full.index_put((self._samples, self.columns), rows)
        # A pad writes into a column that was dropped what stands there.
        real, own = self._real
        return full.index_put((self._samples, own), torch.where(real, rows, full[self._samples, own]))

    def take(self, value: Any) -> Any:
        """What a layer is handed, of the rows: see `at_rows`."""
        shape = len(self.columns), self._span
        return at_rows(value, shape, self.columns, self._samples, self.source.clamp(min=0))

    def last_rows(self, samples: Tensor, columns: Tensor) -> Tensor:
        """The column of the last row at or before each of some columns, (count,) int64 each.

        With rows of columns 0, 1, 4 and 6 left, it is 4 for column 5 and 6 for column 6; a column with no row before it
        stands for itself.
        """
        left = self.columns[samples]  # (count, rows), ascending
        ranks = torch.searchsorted(left, columns[:, None], right=True) - 1
        last = left.gather(1, ranks.clamp(min=0))  # (count, 1)
        return torch.where(ranks < 0, columns[:, None], last)[:, 0]

    def pick(self, tables: Any) -> Any:
        """The rows of full-length tables, such as a (cos, sin) pair, each at the position it had."""
        take: Callable[[Tensor], Tensor] = self.gather
        if self.source is not self.columns:
            take = partial(rows_of, places=self.source.clamp(min=0), samples=self._samples)
        if isinstance(tables, tuple):
            return tuple([take(table) for table in tables])
        if tables is None:
            return None
        return take(tables)

    def number_from(self, first: Tensor) -> Tensor:
        """Position ids of the rows, counted on from `first`, (samples,): (samples, rows) int64."""
        if self._numbers is None:
            return first[:, None] + self._ranks(first.device)
        return first[:, None] + self._numbers.to(first.device)

    def _ranks(self, device: torch.device) -> Tensor:
        """Each row's place among the real ones of its sample: (rows,) or (samples, rows) int64."""
        rows = self.columns.shape[1]
        if self.valid is None:
            return torch.arange(rows, device=device)
        # With one pad in front, ranks 0 1 2 become −1 0 1.
        return torch.arange(-rows, 0, device=device) + self.counts.to(device)[:, None]

    def shift(self, before: Tensor | None, live: Tensor) -> Tensor:
        """How far positions have moved up once these rows are through: (samples,) int64, one tensor for all layers.

        Args:
            before: How far they had on this layer's cache before; None: not at all.
            live: Columns of the call that are no padding, for each sample: (samples,) int64.
        """

        def shift() -> Tensor:
            numbered = self.numbered or self
            device = self.columns.device if before is None else before.device
            gone = live.to(device) - numbered.counts.to(device)
            if before is None:
                return gone
            return gone + before

        return self.memo.once(shift, "shift", before)


NOTHING = torch.zeros(0, 0, dtype=torch.bool)


@dataclass(slots=True, eq=False)
class Segment:
    """Layers behind one another that are handed the same and whose caches hold the same: what the first got, all get.

    Only where no layer's forward is somebody else's, so that nobody moves what layers get to other devices.

    Attributes:
        rows: Their rows; None in a step, where they run on all columns.
        mask, tables: What the model hands them.
        given: What they get in the place of these, by name.
        stored: The first one's cache; None if the model runs without one.
        announced: What their caches are told: see `PrunedLayer.announce`.
        kind: Their class.
        device: Where they run.
        handed: The latest one's output, where it handed the rows on as they are; None: they are back in the full-length
            stream.
        full: That stream then, without them.
    """

    rows: RowMap | None
    mask: Any
    tables: Any
    given: dict[str, Any]
    stored: PrunedLayer | None
    announced: tuple[Tensor | None, int, bool]
    kind: type
    device: torch.device
    handed: Tensor | None = None
    full: Any = None

    def holds(self, layer: PrunedLayer) -> bool:
        """Whether a cache's layer holds the columns that the first one's does."""
        first = self.stored
        assert first is not None
        same = layer.base is first.base and layer.base_end == first.base_end and layer.ragged is first.ragged
        return same and layer.shift is first.shift

    def put_back(self, index: int, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Arguments of layer `index`, in which the rows are back in the full-length stream."""
        handed = self.handed
        if handed is None:
            return args, kwargs
        if handed is not (args[0] if args else kwargs.get("hidden_states")):
            guards.refuse_changed_rows(index)
        full = self.rows.scatter(self.full, handed)  # type: ignore[union-attr, arg-type]
        if args:
            return ((full, *args[1:]), kwargs)
        return (args, {**kwargs, "hidden_states": full})


@dataclass(eq=False)
class Arrival:
    """What is there of a forward on its way to the decoder, pixels among it; let go of before the layers run.

    Attributes:
        last_only: Whether only the last column's logits are asked for, as `generate` does.
        arguments: Of the core's forward, by name.
        ids: The prompt's ids, (samples, columns); None where it came as embeddings.
        encoded: What the `get_*_features` calls answered, by modality.
        image_lengths: Vision tokens of each image of each sample, by modality, where only the prompt tells.
        placeholders: Where the vision tokens are, (samples, columns) bool, by modality.
        splits: Whether chunked prefill will cut an image in two.
        goes_on: Whether this is a chunk of a prompt, and not the first.
        behind_image: Whether the forward before this one ended, on this cache, in an image or right behind it.
        behind_cut: Whether tokens had been dropped there.
        position_ids: (samples or 1, columns); None until the model has made them, and where no stage renumbers rows.
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


@dataclass(eq=False)
class Outcome:
    """What comes of a forward, layer by layer; behind the last one it is all that is read.

    Attributes:
        record: What the trace keeps; None for a decode step.
        buckets: The samples with vision tokens, and what is left of these.
        rows: The rows that the coming layer processes; None while nothing was dropped.
        row_maps: The rows that each layer processed, as far as the forward has come.
    """

    record: PrefillRecord | None = None
    buckets: list[Bucket] = field(default_factory=list)
    rows: RowMap | None = None
    row_maps: list[RowMap | None] = field(default_factory=list)

    def with_tensors(self, change: Change) -> "Outcome":
        """This outcome with other tensors, and a record of its own."""
        record = self.record
        if record is not None:
            record = replace(record, stages=[stage.with_tensors(change) for stage in record.stages])
        buckets = [bucket.with_tensors(change) for bucket in self.buckets]
        return replace(self._with_maps(lambda rows: rows.with_tensors(change)), record=record, buckets=buckets)

    def without(self, pads: int, cut: Change, samples: Sequence[Sample]) -> "Outcome":
        """This outcome of samples that have had so many pads behind them; see `RowMap.without`."""
        buckets = [bucket.of_samples(samples) for bucket in self.buckets]
        return replace(self._with_maps(lambda rows: rows.without(pads, cut)), buckets=buckets)

    def _with_maps(self, change: Callable[[RowMap], RowMap]) -> "Outcome":
        """This outcome with other maps; what was one map stays one."""
        copies: dict[int, RowMap] = {}

        def of(rows: RowMap | None) -> RowMap | None:
            if rows is None:
                return None
            if id(rows) not in copies:
                copies[id(rows)] = copy = change(rows)
                copy.numbered = of(rows.numbered)
            return copies[id(rows)]

        return replace(self, rows=of(self.rows), row_maps=[of(rows) for rows in self.row_maps])


@dataclass(eq=False)
class Forward:
    """One forward in the decoder: a prefill, a later turn or a decode step.

    Attributes:
        program: The method's stages.
        family: Knows the model.
        outcome: What comes of it.
        position_ids: See `Arrival`.
        backend: Name of the attention implementation.
        idle: Whether every layer runs untouched: nothing will be dropped, and nothing is missing in its cache.
        drops: Whether tokens may be dropped in this forward.
        live: (samples, unpruned columns), nonzero where a column is no padding; None if all are, or tokens cannot be
            dropped.
        memo: Masks, tables and copies that several layers share.
        cache: What layers store in, as the first one found it; None if the model runs without one.
        caches: Whether the model was told to cache.
        plans: Vision tokens that each layer will process, for each sample; None where that is not known beforehand.
        noted: The latest prefill's record, where it is noted what steps read.
        steps: Where text alone goes on from a cache of which all is read, its pruned layers (None: another layer); else
            empty.
        segment: The layers before, which the coming one may go on with; None where it cannot.
        hands_on: Whether layers hand rows on to one another.

    Attributes, of what steps read (where the method has a stage for that):
        ends_turn: Whether steps behind this prompt may read less of the caches.
        kinds: (samples, unpruned columns) int8, see `PrunedLayer`; in a step, for the layer that looks.
        asking: (samples, span) bool, the prompt's text that asks, or a step's new rows.
        most: At most so many of these in each sample.
        asked: What the prompt's text pays to every column, (samples, unpruned columns) float32, by layer. Before the
            first layer it is what the chunk before this one asked.

    Attributes, the rows that are left (where `drops`):
        span, count: Columns of the forward, and samples.
        samples: The batch.
        additions: What the decoder adds to vision tokens behind its first layers (see `Family.later_additions`).
        image_ends: Samples and columns of the last token of every run of vision tokens, (2, runs) int64; None where
            only the last column will be read.
        text: (samples, columns) bool, columns of text.
        first: (samples,) int64, each sample's first column that is no padding.
        entering_rows: (samples,) int64, rows of each sample before anything is dropped.
        starts: (samples,) int64, how many vision tokens the samples before each have.
        entered: (samples, columns) bool, columns of these rows; on the host.
    """

    program: Program
    family: Family
    outcome: Outcome = field(default_factory=Outcome)
    position_ids: Tensor | None = None
    backend: str = "sdpa"
    idle: bool = False
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

    ends_turn: bool = False
    kinds: Tensor = NOTHING
    asking: Tensor = NOTHING
    most: int = 0
    asked: dict[int, Tensor] = field(default_factory=dict)

    span: int = 0
    count: int = 0
    samples: list[Sample] = field(default_factory=list)
    additions: list[Tensor] | None = None
    image_ends: Tensor | None = None
    text: Tensor = NOTHING
    first: Tensor = NOTHING
    entering_rows: Tensor = NOTHING
    entered: Tensor = NOTHING
    starts: Tensor = NOTHING

    @property
    def is_whole(self) -> bool:
        """Whether no column is padding."""
        return all([sample.live == self.span for sample in self.samples])

    @property
    def layout(self) -> Hashable:
        """What the host knows of the forward and its layers go by, as a value."""
        assert self.outcome.record is not None
        flags = self.drops, self.hands_on, self.caches, self.backend, self.image_ends is None
        plans = tuple([None if plan is None else tuple(plan) for plan in self.plans])
        buckets = tuple([(one.members, one.sizes, tuple(one.notes), tuple(one.text)) for one in self.outcome.buckets])
        samples = tuple([sample.layout for sample in self.samples])
        return self.span, flags, plans, samples, buckets, len(self.outcome.record.stages)

    def twin(self, change: Change, kwargs: dict[str, Any]) -> "Forward":
        """This forward as it has begun, with other tensors: what the decoder is handed, by name, and what is left."""
        ids = self.position_ids
        additions = None if self.additions is None else self.family.later_additions(kwargs)
        outcome, ids = self.outcome.with_tensors(change), None if ids is None else change(ids)
        return replace(self, outcome=outcome, position_ids=ids, additions=additions, memo=Memo())

    def padded(self, pads: int) -> "Forward":
        """This forward of whole samples with so much more text behind each."""
        samples = [sample.padded(self.span, pads) for sample in self.samples]
        padded = replace(self, span=self.span + pads, samples=samples, live=None)
        padded.outcome = replace(self.outcome, buckets=[one.of_samples(samples) for one in self.outcome.buckets])
        if self.drops:
            padded.text = nn.functional.pad(self.text, (0, pads), value=True)
            padded.entering_rows = self.entering_rows + pads
        if self.outcome.rows is not None:  # the tower has cut
            padded.outcome.rows = None
            padded.lay_out(self.outcome.rows.numbered is not None)
        return padded

    def drop_in(self, samples: list[Sample], embeds: Tensor, last_only: bool) -> None:
        """Begin a forward in which tokens will be dropped, of embeddings (samples, columns, width); see `Arrival`."""
        self.drops = True
        self.span = embeds.shape[1]
        self.outcome.buckets = buckets_of(samples, self.program.together, embeds.device, self.program.reads_words)
        if not last_only:
            # A run ends where the next token is of another: of runs 0 0 1 at the second and third token.
            ends = [sample.vision.numpy()[np.diff(sample.runs.numpy(), append=-1) != 0] for sample in samples]
            owners = np.repeat(np.arange(len(samples)), [len(columns) for columns in ends])
            self.image_ends = send(torch.from_numpy(np.stack((owners, np.concatenate(ends)))), embeds.device)
        text, entered = np.zeros((2, len(samples), self.span), bool)
        for row, sample in enumerate(samples):
            columns = sample.text.numpy()
            text[row, columns] = entered[row, columns] = True
            entered[row, sample.vision.numpy()] = True
        vision = np.array([len(sample.vision) for sample in samples])
        # argmax finds the first of equal values: padding, padding, text, image gives column 2.
        numbers = np.stack((entered.argmax(axis=1), entered.sum(axis=1), vision.cumsum() - vision))
        self.first, self.entering_rows, self.starts = send(torch.from_numpy(numbers), embeds.device)
        self.text = send(torch.from_numpy(text), embeds.device)
        self.entered = torch.from_numpy(entered)

    @property
    def ends_in_vision(self) -> bool:
        """Whether any sample ends in a vision token."""
        return any([sample.ends for sample in self.samples])

    @property
    def dropped(self) -> bool:
        """Whether any sample has fewer rows now than it had vision tokens."""
        return any([bucket.left < bucket.entered for bucket in self.outcome.buckets])

    @property
    def present(self) -> RowMap:
        """The rows that are left, also while nothing was dropped."""
        if self.outcome.rows is not None:
            return self.outcome.rows
        return self.memo.once(self._rows_left, "present")

    def vision_left(self) -> tuple[int, ...]:
        """Vision tokens left of each sample, those that always stay among them."""
        return self._with_left([0 if sample.ordinals is None else len(sample.ordinals[1]) for sample in self.samples])

    def _with_left(self, others: list[int]) -> tuple[int, ...]:
        """Rows of each sample: so many others, and those that are left of its vision tokens."""
        counts = list(others)
        for bucket in self.outcome.buckets:
            left = bucket.source.shape[1]
            for member in bucket.members:
                counts[member] += left
        return tuple(counts)

    def lay_out(self, renumbers: bool) -> None:
        """Say which rows the coming layers process: those that are left now, numbered anew or as they were."""
        before, self.outcome.rows = self.outcome.rows, self._rows_left()
        if renumbers:
            self.outcome.rows.numbered = self.outcome.rows  # each has its place among those left as its position
        elif before is not None:
            self.outcome.rows.number_on(before)

    def _rows_left(self) -> RowMap:
        lengths = self._with_left([len(sample.text) for sample in self.samples])
        if not any(lengths):
            raise UnsupportedError(
                "Every token of the prompt was dropped: the prompt has no text, and no vision token was kept. "
                "Always keep a token (min_keep=1), or add text."
            )
        device = self.outcome.buckets[0].index.device
        left = self.text.to(device)  # (samples, columns): text first, then each bucket's rows
        source: Tensor | None = None
        if any([bucket.parent is not None for bucket in self.outcome.buckets]):
            source = torch.arange(self.span, device=device).expand_as(left)
        for bucket in self.outcome.buckets:
            columns = bucket.columns
            left = left.index_put((bucket.owners, columns), left.new_ones(()))
            if source is not None:
                source = source.index_put((bucket.owners, columns), bucket.positions_of())
        return RowMap(left, lengths, source)

    def move_additions(self, bucket: Bucket, layer: int, came_from: Tensor) -> None:
        """Let the later additions of merged rows go with the tokens they stand for, to the places they are in now."""
        if self.additions is None:
            return
        if not isinstance(self.additions, list):
            raise UnsupportedError(
                "This model adds features of its pictures before several layers, which foveate cannot move along with "
                "rows that are merged, or that have text between them. Use a method that drops between layers, and "
                "merges none."
            )
        # Additions are (vision tokens of all samples, width): a bucket's ordinals begin where its samples do.
        starts = self.starts.to(bucket.index.device)[bucket.owners]  # (samples, 1)
        for depth in range(layer, len(self.additions)):
            added = self.additions[depth]
            first = starts.to(added.device)
            target = bucket.slots.to(added.device) + first  # (samples, left)
            origin = came_from.to(added.device) + first
            self.additions[depth] = added.index_put((target,), added[origin])

    def record_cut(self, where: Where, layer: int | None, before: tuple[int, ...]) -> None:
        """Write a cut into the trace."""
        assert self.outcome.record is not None
        sources: dict[int, Tensor] = {}
        parents: dict[int, Tensor] = {}
        for bucket in self.outcome.buckets:
            source, parent = bucket.source_and_parent()
            sources.update(zip(bucket.members, source.unbind(), strict=True))
            if parent is not None:
                parents.update(zip(bucket.members, parent.unbind(), strict=True))
        for member, sample in enumerate(self.samples):
            if member not in sources:  # none of its vision tokens may be dropped
                sources[member] = torch.arange(sample.fixed)
        origin = [sources[member] for member in range(len(self.samples))]
        assign = [parents.get(member) for member in range(len(self.samples))]
        self.outcome.record.stages.append(StageRecord(where, layer, before, self.vision_left(), origin, assign))

    def final(self) -> tuple[Tensor, Tensor]:
        """What is left at the end.

        Returns:
            Which columns have a token that a row stands for, text included; and which hold a row that stands for none,
            such as a CLS: (samples, columns) bool each. Such a row stays in its column from cut to cut.
        """
        # 1 at text and 0 at vision tokens, then the number of rows that stand for the column.
        final = torch.ones_like(self.text, dtype=torch.int32)
        others = torch.zeros_like(self.text, dtype=torch.bool)
        for bucket in self.outcome.buckets:
            owners = bucket.owners.to(final.device)
            final = final.index_put((owners, bucket.vision.to(final.device)), final.new_zeros(()))
            source = bucket.source.to(final.device)
            columns = bucket.vision.to(final.device).gather(1, source.clamp(min=0))  # (samples, left)
            # A row that stands for no token is read as token 0 here, so it adds a 0 there: adding, not writing.
            final = final.index_put((owners, columns), (source >= 0).to(final.dtype), accumulate=True)
            others = others.index_put((owners, bucket.columns.to(final.device)), source < 0)
        return final > 0, others


@dataclass(slots=True, eq=False)
class LayerCall:
    """One decoder layer's call, as the model makes it.

    Attributes:
        index: Which layer.
        module: The layer.
        entered: Its full-length input, (samples, columns, width).
        hidden: The same with merged rows in it, once the stages before the layer have cut.
        kwargs: Other arguments by name; masks, tables and ids are replaced on the way.
        by_name: Whether the input came by name too.
        stored: The layer's cache, where tokens of it were dropped.
        cache: The model's; None if it runs without one.
        streams: How its hidden states come in several streams; None where they are one.
    """

    index: int
    module: nn.Module
    entered: Tensor
    hidden: Tensor
    kwargs: dict[str, Any]
    by_name: bool
    stored: PrunedLayer | None
    cache: Any
    streams: Streams | None = None

    @property
    def past(self) -> int:
        """Unpruned columns before this call, as far as its cache has lost tokens; else 0."""
        if self.stored is None:
            return 0
        return self.stored.seen

    @property
    def shift(self) -> Tensor | None:
        """How far positions have moved up on the layer's cache; None: not at all."""
        if self.stored is None:
            return None
        return self.stored.shift

    def run(self, original: Original, hidden: Tensor) -> Any:
        """Call the layer itself on these rows."""
        if self.by_name:
            arguments = {**self.kwargs, "hidden_states": hidden}
            return original(**arguments)
        return original(hidden, **self.kwargs)

    @property
    def more(self) -> dict[str, Any]:
        """Arguments that layers of the usual kind do not get, by name."""
        return {name: value for name, value in self.kwargs.items() if name not in guards.LAYER_ARGUMENTS}
