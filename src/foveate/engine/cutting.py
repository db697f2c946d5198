"""Each layer, first: what the stages before it see of each sample, and which vision tokens they drop or merge."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.cut import Cut, note_of
from foveate.core.signals import Attention, Cells, Columns, Hidden, KeyNorms, Keys, Normed, Pivots, Signal
from foveate.core.tensors import Tensors, send
from foveate.core.views import Arriving, ImageView, LayerView, View
from foveate.engine import guards, trace
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.program import CELLS, NotesOf, Program, hidden_note, named, ran_note
from foveate.engine.reading import RATERS, raters_of, streams
from foveate.engine.samples import Begun, Bucket, Pick, Sample, Unit, each, image_units, sample_unit

__all__ = [
    "BucketReader",
    "Decision",
    "Reader",
    "SampleRows",
    "asking_units",
    "cut_before",
    "decide",
    "decide_bucket",
    "lay_out",
    "move_additions",
    "note_attending",
    "record",
]

Part = Callable[[Tensor], Tensor]
"""Of a tensor with a sample's rows in front, the rows of a unit."""


class Reader(Protocol):
    """Reads the attention of the coming layer, and the stream that enters it, for one sample."""

    def attention(self, signal: Attention, units: Sequence[Unit]) -> Tensor:
        """The signal of these units' rows, one behind the other: (rows,) float32."""
        ...

    def keys(self) -> Tensor:
        """The layer's keys at the sample's rows, mean over heads: (rows, head size) float32."""
        ...

    def states(self, columns: Tensor) -> Tensor:
        """The stream entering the layer at these columns, (columns, width)."""
        ...

    def normed(self, rows: Tensor) -> Tensor:
        """Rows of the stream, (rows, width), through the norm in front of the model's head."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What the stages before a layer leave of a sample.

    Attributes:
        cut: Of the sample's rows.
        sizes: Rows it leaves of each image; None where only the device knows.
    """

    cut: Cut
    sizes: tuple[int, ...] | None


@dataclass(slots=True, eq=False)
class SampleRows:
    """One sample's vision rows before a decoder layer.

    Attributes:
        layer: The decoder layer (0-based).
        sample: What the host knows of the sample, and of all that are alike.
        source: Which tokens the rows stand for: (rows,) int64, −1 for none of its own.
        sizes: Rows of each image (or frame); None once a cut ranked over all of them together.
        notes: What is remembered of the rows.
        read: Returns the residual stream entering the layer at these rows, (rows, width).
        reader: Reads attention and keys of the layer.
        text: What is remembered of the text behind the images: a tensor a name, with the images in front.
        begun: Rows that layer 0 has processed, for methods that did not cut before it themselves; None before it has.
    """

    layer: int
    sample: Sample
    source: Tensor
    sizes: tuple[int, ...] | None
    notes: dict[str, Tensor]
    read: Callable[[], Tensor]
    reader: Reader
    text: Mapping[str, Tensor] = field(default_factory=dict)
    begun: Begun | None = None
    _hidden: Tensor | None = None

    def __len__(self) -> int:
        return self.source.shape[0]

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these rows: (rows, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.read()
        return self._hidden

    def units(self, stage: Stage) -> list[Unit]:
        """What a stage ranks together."""
        if stage.unit == "sample":
            return [sample_unit(self.sample, len(self))]
        frames = self.sample.frames
        guards.refuse_unknown_units(stage, self.sizes, frames is not None and len(frames) > len(self.sample.media))
        assert self.sizes is not None
        return image_units(self.sample, self.sizes)

    def view(self, stage: Stage, unit: Unit) -> View:
        """What a stage sees of a unit."""

        rows = None if len(unit) == len(self) else unit.rows

        def part(tensor: Tensor) -> Tensor:
            return tensor if rows is None else tensor[rows]

        notes = NotesOf(self.notes, stage, rows)
        tokens = partial(part, self.source)
        if stage.place is not Place.LAYER:
            return ImageView(part(self.hidden), tokens=tokens, arriving=unit.arriving, notes=notes, merged=True)
        # Every signal is a function here, so that what a stage does not read is never computed.
        hidden: Callable[[], Tensor] | None = None
        before: Callable[[], Tensor] | None = None
        signals: dict[Signal, Callable[[], Tensor]] = {}
        for signal in stage.reads:
            if not isinstance(signal, Hidden):
                signals[signal] = partial(self._signal, signal, unit, part)
                continue
            hidden = partial(self._hidden_part, part)
            if signal.back and before is None:
                before = partial(self._earlier_part, signal.back, part)
        return LayerView(
            hidden=hidden,
            hidden_before=before,
            count=len(unit),
            tokens=tokens,
            device=self.source.device,
            arriving=self._arriving(stage, unit),
            notes=notes,
            signals=signals,
            text_behind=any(unit.text_after),
        )

    def _arriving(self, stage: Stage, unit: Unit) -> Arriving:
        """What a stage's count is made of; with the grids of a whole image, if the stage reads cells."""
        arriving, grids = unit.arriving, self.sample.grids
        begun = self.begun
        if begun is not None and stage.owner not in begun.opening:
            if unit.in_sample is None:
                arriving = replace(arriving, started=begun.count)
            elif begun.sizes is not None:
                arriving = replace(arriving, started=begun.sizes[unit.image])
        alone = self.sample.frames is None and (unit.in_sample is not None or len(grids) == 1)
        if Cells() in stage.reads and alone and len(unit) == arriving.started == arriving.entered:
            return replace(arriving, grids=grids[unit.image])
        return arriving

    def _hidden_part(self, part: Part) -> Tensor:
        """The residual stream at a unit's rows."""
        return part(self.hidden)

    def _earlier_part(self, back: int, part: Part) -> Tensor:
        """The residual stream at a unit's rows as it was so many layers earlier."""
        return part(self.notes[hidden_note(self.layer - back)])

    def _signal(self, signal: Signal, unit: Unit, part: Part) -> Tensor:
        """A signal for the rows of a unit."""
        if isinstance(signal, Keys):
            return part(self.reader.keys())
        if isinstance(signal, Cells):
            none = part(self.source) < 0
            return part(self.notes[CELLS]).masked_fill(none[:, None], -1)
        if isinstance(signal, Normed):
            return self.reader.normed(part(self.hidden))
        if isinstance(signal, Pivots):
            columns = self.text[ran_note(signal, self.layer - 1)][unit.image]
            rows = self.reader.normed(self.reader.states(columns.clamp(min=0)))
            return rows * (columns >= 0)[:, None]
        if isinstance(signal, Columns):
            note = ran_note(signal, self.layer - 1)
            own = part(self.notes[note])
            return torch.cat((own, self.text[note][unit.image])) if signal.pivots else own
        assert isinstance(signal, Attention | KeyNorms)
        if isinstance(signal, KeyNorms) or signal.layer == "ran":
            return part(self.notes[ran_note(signal, self.layer - 1)])
        return self.reader.attention(signal, asking_units(signal, self.sample, self.sizes, unit))

    def behind(self, decision: Decision, stage: Stage) -> "SampleRows":
        """The rows that a second stage before the same layer sees, behind the first one's cut."""
        cut = decision.cut
        guards.refuse_reading_ahead(stage, self.layer, cut)
        source = torch.where(cut.source < 0, -1, self.source[cut.source.clamp(min=0)])
        notes = {name: note_of(note, cut.source, cut.rows) for name, note in self.notes.items()}
        notes |= cut.notes
        return replace(
            self,
            source=source,
            read=partial(cut.rows_left, self.hidden),
            sizes=decision.sizes,
            notes=notes,
            _hidden=None,
        )


def asking_units(signal: Attention, sample: Sample, sizes: Sequence[int] | None, unit: Unit) -> Sequence[Unit]:
    """The units whose attention is read one by one for a unit.

    In a sample with several images the text behind each pays attention to that image; the last row pays it to all.
    """
    if signal.rows == "last" or sizes is None or unit.in_sample is not None:
        return [unit]
    return image_units(sample, sizes)


def decide(rows: SampleRows, stages: Sequence[Stage]) -> Decision | None:
    """What the stages before a layer leave of a sample, the second working on what the first left; None: all."""
    decision: Decision | None = None
    answer: Decision | None = None
    for stage in stages:
        if answer is not None:  # the stage before this one has cut
            rows = rows.behind(answer, stage)
        units = rows.units(stage)
        views = [rows.view(stage, unit) for unit in units]
        cuts = [_cut_of(stage, view) for view in views]
        if not stage.drops:  # it only looks, and leaves notes
            answer = None
            notes = _notes(cuts, stage)
            rows.notes.update(notes)
            if decision is not None:
                decision.cut.notes = {**decision.cut.notes, **notes}
            continue
        answer = _answer(cuts, units, rows, stage)
        if answer is None:
            continue
        cut = answer.cut if decision is None else decision.cut.then(answer.cut)
        decision = Decision(cut, answer.sizes)
    return decision


def _cut_of(stage: Stage, view: View) -> Cut | None:
    """What a stage makes of a unit; nothing of one that has lost all its rows."""
    if not len(view):
        return None
    return stage.cut(view)


def _notes(cuts: Sequence[Cut | None], stage: Stage) -> Mapping[str, Tensor]:
    """The notes of a stage that only looks, its units' one behind the other."""
    notes_of_units = [named(cut, stage).notes for cut in cuts if cut is not None]
    if not notes_of_units:
        return {}
    first = notes_of_units[0]
    if len(notes_of_units) == 1:
        return first
    return {name: torch.cat([notes[name] for notes in notes_of_units]) for name in first}


def _answer(cuts: Sequence[Cut | None], units: Sequence[Unit], rows: SampleRows, stage: Stage) -> Decision | None:
    """One decision about a sample from the cuts of its units; None where nothing is dropped."""
    if all(cut is None for cut in cuts):
        return None
    unit_cuts = []
    for unit_cut, unit in zip(cuts, units, strict=True):
        unit_cuts.append(Cut.stay(len(unit)) if unit_cut is None else named(unit_cut, stage))
    cut = unit_cuts[0]
    if len(units) > 1:
        cut = _joined(unit_cuts, units, rows)
    if cut.stays is not None or rows.sizes is None or len(rows.sizes) != len(units):
        return Decision(cut, None)
    counts = tuple(part.count for part in unit_cuts if isinstance(part.count, int))
    return Decision(cut, counts if len(counts) == len(units) else None)


def _joined(cuts: Sequence[Cut], units: Sequence[Unit], rows: SampleRows) -> Cut:
    """One cut of a sample from those of its units, one behind the other.

    An example: of two images of three tokens the first loses its second token, the second its first.

        sources   0 2 and 1 2      joined   0 2 4 5
        parents   0 −1 1, −1 0 1   joined   0 −1 1 −1 2 3
    """
    # A note must be there for all rows, so one that only some units have is left out.
    shared = set.intersection(*(set(cut.notes) for cut in cuts))
    notes = {name: torch.cat([cut.notes[name] for cut in cuts]) for name in shared}
    device = rows.source.device
    if any(cut.stays is not None for cut in cuts):
        return Cut.keep(torch.cat([_mask(cut, device) for cut in cuts]), notes)
    moved = [_moved(_source(cut, device), cut, unit.start) for cut, unit in zip(cuts, units, strict=True)]
    if all(cut.rows is None for cut in cuts):
        return Cut.take(torch.cat(moved), len(rows), notes)
    firsts = [0, *itertools.accumulate(len(source) for source in moved)]  # of each unit, its first row in the joined
    parents = [_parent(cut, device) for cut in cuts]
    placed = [torch.where(parent < 0, parent, parent + first) for parent, first in zip(parents, firsts, strict=False)]
    merged = [cut.rows_left(rows.hidden[unit.rows]) for cut, unit in zip(cuts, units, strict=True)]
    return Cut.merge(torch.cat(moved), torch.cat(merged), torch.cat(placed), notes)


def _mask(cut: Cut, device: torch.device) -> Tensor:
    """Which tokens stay, (arriving,) bool."""
    if cut.stays is not None:
        return cut.stays
    if cut.stays_whole:
        return torch.ones(cut.arriving, dtype=torch.bool, device=device)
    return cut.parent >= 0


def _source(cut: Cut, device: torch.device) -> Tensor:
    """The token each row stands for, made on this device where a cut changes nothing."""
    if cut.stays_whole:
        return torch.arange(cut.arriving, device=device)
    return cut.source


def _parent(cut: Cut, device: torch.device) -> Tensor:
    """The row each token went into, made on this device where a cut changes nothing."""
    if cut.stays_whole:
        return torch.arange(cut.arriving, device=device)
    return cut.parent


def _moved(source: Tensor, cut: Cut, start: int) -> Tensor:
    """Sources of a unit as places in its sample; −1 stays."""
    if start == 0:
        return source
    if cut.rows is None:  # every row stands for a token, so there is no −1
        return source + start
    return torch.where(source < 0, source, source + start)


class BucketReader(Protocol):
    """What `RowsReader` reads, for all samples of a bucket."""

    def reduced(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]: ...
    def keys(self) -> Tensor: ...
    def key_norms(self) -> Tensor: ...
    def pivots(self, count: int, units: Sequence[Unit]) -> Tensor: ...
    def in_prompt(self, columns: Tensor) -> Tensor: ...


ReaderOf = Callable[[Bucket], BucketReader]
Norm = Callable[[Tensor], Tensor]


def cut_before(forward: Forward, program: Program, call: LayerCall, reader_of: ReaderOf, norm: Norm) -> None:
    """Let the stages before a layer cut, and remember what later ones will read.

    Args:
        forward: What is left changes.
        program: Says which stages stand here.
        call: The layer's call; merged rows are written into a copy of its input.
        reader_of: Reads this layer's attention, for a bucket.
        norm: The norm in front of the model's head.
    """
    layer = call.index
    if layer == 0 and program.finds_raters:
        for bucket in forward.buckets:
            if bucket.left:
                bucket.to(call.hidden.device)
                bucket.text[RATERS] = raters_of(forward, bucket, call.hidden)
    if program.before(layer):
        _cut(forward, program, call, reader_of, norm)
    if layer == 0:
        for bucket in forward.buckets:
            bucket.begun = Begun(bucket.left, bucket.sizes, program.opening)
    if program.remembers(layer):
        for bucket in forward.buckets:
            if bucket.left:
                bucket.to(call.hidden.device)
                bucket.notes[hidden_note(layer)] = call.hidden[bucket.owners, bucket.columns]
    forward.row_maps.append(forward.rows)


def note_attending(bucket: Bucket, signals: Sequence[Signal], layer: int, reader: BucketReader) -> None:
    """Remember what queries and keys of a layer that attends come to, for stages before the next."""
    rows = sample_unit(bucket.first, bucket.left)
    images = [rows] if bucket.sizes is None else image_units(bucket.first, bucket.sizes)
    for signal in signals:
        if isinstance(signal, KeyNorms):
            bucket.notes[ran_note(signal, layer)] = reader.key_norms()
        elif isinstance(signal, Pivots):
            bucket.text[ran_note(signal, layer)] = reader.pivots(signal.count, images)
        elif isinstance(signal, Columns):
            bucket.notes[ran_note(signal, layer)] = reader.in_prompt(bucket.columns)
            if signal.pivots:
                text = reader.pivots(signal.pivots, images)
                bucket.text[ran_note(signal, layer)] = reader.in_prompt(text.flatten(1)).view_as(text)
    for alike in streams([signal for signal in signals if isinstance(signal, Attention)]):
        units = asking_units(alike[0], bucket.first, bucket.sizes, rows)
        for attention, values in reader.reduced(alike, units).items():
            bucket.notes[ran_note(attention, layer)] = values


def _cut(forward: Forward, program: Program, call: LayerCall, reader_of: ReaderOf, norm: Norm) -> None:
    """Cut before a layer, and record it if tokens may be dropped there."""
    before = forward.vision_left() if call.index in program.cuts else ()
    undecided = [
        (bucket, decide_bucket(bucket, program, call.index, call.hidden, reader_of, norm)) for bucket in forward.buckets
    ]
    decisions = _with_counts(undecided)
    forward.buckets = [bucket for bucket, _ in decisions]
    dropped, merged = False, []
    for bucket, decision in decisions:
        if decision is None:
            continue
        cut = decision.cut
        if cut.rows is None and cut.count == bucket.left:  # all tokens stay
            bucket.notes |= cut.notes
            continue
        dropped = True
        rows, came_from = bucket.take(cut, decision.sizes)
        if rows is not None:
            columns = bucket.columns
            owners = bucket.owners.expand_as(columns)
            merged.append((owners.flatten(), columns.flatten(), rows.flatten(0, 1)))
            move_additions(forward, bucket, call.index, came_from)
    if merged:  # one write for all buckets
        owners, columns, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
        call.hidden = call.hidden.index_put((owners, columns), rows.to(call.hidden.dtype))
    if dropped:
        lay_out(forward, program, call.index)
    if call.index in program.cuts:
        record(forward, "layer", call.index, before)


class LazyReader:
    """Makes the reader of a bucket when it is first needed."""

    def __init__(self, bucket: Bucket, reader_of: ReaderOf) -> None:
        self._bucket = bucket
        self._reader_of = reader_of
        self._reader: BucketReader | None = None

    @property
    def reader(self) -> BucketReader:
        """The same reader every time."""
        if self._reader is None:
            self._reader = self._reader_of(self._bucket)
        return self._reader


class SampleReader:
    """What is read of a layer for one sample of a bucket; nothing is computed until it is asked for."""

    def __init__(self, bucket_reader: LazyReader, pick: Pick, states: Norm, norm: Norm) -> None:
        self._bucket_reader = bucket_reader
        self._pick = pick
        self.states = states
        self.normed = norm

    def attention(self, signal: Attention, units: Sequence[Unit]) -> Tensor:
        of_samples = self._bucket_reader.reader.reduced([signal], units)
        return self._pick(of_samples[signal])

    def keys(self) -> Tensor:
        return self._pick(self._bucket_reader.reader.keys())


def decide_bucket(
    bucket: Bucket, program: Program, layer: int, hidden: Tensor, reader_of: ReaderOf, norm: Norm
) -> Decision | None:
    """What the stages before a layer leave of a bucket, with the samples in front of all tensors.

    Args:
        bucket: The samples, and their rows that are left.
        program: Says which stages stand here.
        layer: The decoder layer.
        hidden: Its full-length input, (samples of the batch, columns, width).
        reader_of: Reads this layer's attention, for a bucket.
        norm: The norm in front of the model's head.
    """
    if not bucket.left:
        return None
    bucket.to(hidden.device)
    stages = program.before(layer)
    reader = LazyReader(bucket, reader_of)
    # Under vmap `of_sample` runs once for all samples, so there is one decision; its tensors come out of `each`.
    decisions: list[Decision | None] = []

    def of_sample(sample: Tensors, pick: Pick) -> Tensors:
        columns = sample["columns"]

        def states(columns: Tensor) -> Tensor:
            return hidden[sample["index"].expand(len(columns)), columns]

        rows = SampleRows(
            layer,
            bucket.first,
            sample["source"],
            bucket.sizes,
            sample["notes"],
            lambda: states(columns),
            SampleReader(reader, pick, states, norm),
            sample["text"],
            bucket.begun,
        )
        decision = decide(rows, stages)
        for name in program.done_with(layer):
            rows.notes.pop(name, None)
        decisions.append(decision)
        if decision is None:
            return {"notes": rows.notes}
        return {"notes": rows.notes} | _tensors(decision.cut, columns.device)

    tensors = {
        "index": bucket.index,
        "columns": bucket.columns,
        "source": bucket.source,
        "notes": bucket.notes,
        "text": bucket.text,
    }
    answer = each(of_sample, tensors)
    bucket.notes = answer["notes"]
    decision = decisions[0]
    if decision is None:
        return None
    if "stays" in answer:  # these notes are of the tokens that arrive, as the bucket's own
        bucket.notes = bucket.notes | answer["cut notes"]
        return Decision(Cut(decision.cut.arriving, stays=answer["stays"]), None)
    return Decision(_batched(decision.cut, answer), decision.sizes)


def _batched(cut: Cut, tensors: Tensors) -> Cut:
    """A cut whose tensors have the samples in front, from that of one sample and the tensors of all."""
    return Cut(
        cut.arriving,
        cut.count,
        source=tensors["source"],
        parent=tensors.get("parent"),
        rows=tensors.get("rows"),
        notes=tensors["cut notes"],
    )


def _tensors(cut: Cut, device: torch.device) -> Tensors:
    """What a cut is made of: a mask, or sources, and rows and parents where it merges."""
    notes = {"cut notes": dict(cut.notes)}
    if cut.stays is not None:
        return {"stays": cut.stays.to(device)} | notes
    if cut.rows is None:
        return {"source": cut.source.to(device)} | notes
    return {"source": cut.source.to(device), "rows": cut.rows, "parent": cut.parent.to(device)} | notes


def _with_counts(
    decisions: Sequence[tuple[Bucket, Decision | None]],
) -> list[tuple[Bucket, Decision | None]]:
    """The same decisions with counts that the host knows.

    A mask says which tokens stay and not how many. The device is asked once for the whole batch.
    """
    masks = [(bucket, decision.cut.stays) for bucket, decision in decisions if decision is not None]
    unknown = [(bucket, stays) for bucket, stays in masks if stays is not None]
    if not unknown:
        return list(decisions)
    numbers = iter(_numbers(unknown))
    counted: list[tuple[Bucket, Decision | None]] = []
    for bucket, decision in decisions:
        if decision is None or decision.cut.stays is None:
            counted.append((bucket, decision))
        else:
            counted += _divided(bucket, decision.cut.stays, numbers)
    return counted


def _divided(bucket: Bucket, stays: Tensor, numbers: Iterator[int]) -> list[tuple[Bucket, Decision]]:
    """A bucket divided into samples that keep equally many tokens of each image, each part with its cut.

    Args:
        bucket: The samples.
        stays: Which tokens stay, (samples, arriving) bool.
        numbers: How many these are, of each image of each sample; taken from the front.
    """
    images = len(bucket.sizes or (1,))
    alike: dict[tuple[int, ...], list[int]] = {}
    for place in range(len(bucket.members)):
        counts = tuple(itertools.islice(numbers, images))
        alike.setdefault(counts, []).append(place)
    # A stable sort of 0s and 1s brings the tokens that stay to the front, in order: of 1 0 1 (stay) it makes 0 2 1.
    order = (~stays).sort(dim=1, stable=True).indices
    divided = []
    for counts, places in alike.items():
        source = order
        if len(alike) > 1:
            source = order[send(torch.tensor(places), order.device)]
        left = sum(counts)
        cut = Cut(stays.shape[1], left, source=source[:, :left])
        sizes = None if bucket.sizes is None else counts
        divided.append((bucket.part(places), Decision(cut, sizes)))
    return divided


def _numbers(masks: Sequence[tuple[Bucket, Tensor]]) -> list[int]:
    """How many tokens stay of each image of each sample of each bucket, one number after the other."""
    sums = []
    for bucket, stays in masks:
        images = torch.split(stays, list(bucket.sizes or (bucket.left,)), dim=1)
        counts_of_images = torch.stack([image.sum(dim=1) for image in images], dim=1)  # (samples, images)
        sums.append(counts_of_images.flatten())
    device = sums[0].device
    numbers: list[int] = torch.cat([counts.to(device) for counts in sums]).tolist()
    return numbers


def lay_out(forward: Forward, program: Program, layer: int | None) -> None:
    """Say which rows the coming layers process, and at which positions."""
    before, forward.rows = forward.rows, forward.lay_out()
    if program.renumbers_before(layer):
        forward.rows.number_anew()
    elif before is not None:
        forward.rows.number_on(before)


def move_additions(forward: Forward, bucket: Bucket, layer: int, came_from: Tensor) -> None:
    """Let the later additions of merged rows go with the tokens they stand for, to the places they are in now."""
    additions = forward.additions
    if additions is None or layer >= len(additions):
        return
    # Additions are (vision tokens of all samples, width): a bucket's ordinals begin where its samples do.
    ends = [0, *itertools.accumulate(len(sample.vision) for sample in forward.samples)]
    starts = torch.tensor([ends[member] for member in bucket.members])[:, None]
    for depth in range(layer, len(additions)):
        added = additions[depth]
        first = send(starts, added.device)
        target = bucket.slots.to(added.device) + first
        origin = came_from.to(added.device) + first
        additions[depth] = added.index_put((target,), added[origin])


def record(
    forward: Forward, where: Literal["tower", "projector", "layer", "kv"], layer: int | None, before: tuple[int, ...]
) -> None:
    """Write a cut into the trace."""
    assert forward.record is not None
    sources: dict[int, Tensor] = {}
    parents: dict[int, Tensor] = {}
    for bucket in forward.buckets:
        source, parent = bucket.source_and_parent()
        sources.update(zip(bucket.members, source.unbind(), strict=True))
        if parent is not None:
            parents.update(zip(bucket.members, parent.unbind(), strict=True))
    for member, sample in enumerate(forward.samples):
        if member not in sources:  # none of its vision tokens may be dropped
            sources[member] = torch.arange(sample.fixed)
    members = range(len(forward.samples))
    origin = [sources[member] for member in members]
    assign = [parents.get(member) for member in members]
    forward.record.stages.append(trace.Stage(where, layer, before, forward.vision_left(), origin, assign))
