"""Each layer, first: what the stages before it see of each sample, and which vision tokens they drop or merge."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.cut import Cut, Pick, look_up, note_of, together
from foveate.core.signals import (
    Attention,
    Cells,
    Columns,
    Hidden,
    Keys,
    Normed,
    Pivots,
    Products,
    Resource,
    Rotary,
    Signal,
    Text,
)
from foveate.core.tensors import Change, Tensors, alike, stack_samples
from foveate.core.views import Arriving, ImageView, LayerView, View
from foveate.engine.attending import RATERS, streams
from foveate.engine.buckets import WORDS, Bucket, Sizes
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.program import CELLS, Program, hidden_note, notes_of, ran_note, rotary_note
from foveate.engine.reading import raters_of
from foveate.engine.samples import Begun, Sample, Unit, image_units, sample_unit
from foveate.errors import UnsupportedError

ALL_CELLS = Cells()


@dataclass(frozen=True, slots=True)
class Decision:
    """The rows of a sample that the stages before a layer leave.

    Attributes:
        cut: The cut of the sample's rows.
        sizes: Rows left of each image; None if only the device knows.
    """

    cut: Cut
    sizes: tuple[int, ...] | None


@dataclass(slots=True, eq=False)
class SampleRows:
    """One sample's vision rows before a decoder layer.

    Attributes:
        layer: The decoder layer (0-based).
        sample: What the host knows of the sample; shared by all samples of its bucket.
        source: Index of the token each row stands for: (rows,) int64, −1 for a row without a token.
        sizes: Rows of each image (or frame); None after a cut that ranked all of them together.
        notes: Tensors stored per row, by name.
        read: Returns the residual stream entering the layer at these rows, (rows, width).
        reader: Reads attention and keys of the layer; None if the host has no decoder to read.
        text: Tensors stored about the text behind the images, by name; their first dimension is the images.
        begun: Rows that layer 0 processed, for methods that did not cut before it; None before layer 0.
    """

    layer: int
    sample: Sample
    source: Tensor
    sizes: tuple[int, ...] | None
    notes: dict[str, Tensor]
    read: Callable[[], Tensor]
    reader: "SampleReader | None"
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
        """Return the groups of rows that a stage ranks separately."""
        if stage.unit == "sample":
            return [sample_unit(self.sample, len(self))]
        frames = self.sample.frames
        if self.sizes is None:
            raise UnsupportedError(
                f"{stage} ranks each {stage.unit} separately, but an earlier cut ranked all images of a sample "
                f"together, so the number of tokens left in each {stage.unit} is not known. Give both the same scope."
            )
        if stage.unit == "image" and frames is not None and len(frames) > len(self.sample.media):
            raise UnsupportedError(
                f"{stage} ranks each video as a whole, but an earlier stage ranked frame by frame. Give both the same "
                "scope."
            )
        if frames is not None and len(frames) != len(self.sizes):
            raise UnsupportedError(
                f"{stage} ranks each frame separately, but an earlier stage has dropped tokens before the decoder, so "
                "the number of tokens left in each frame is not known. Use scope='image' or 'sample'."
            )
        return image_units(self.sample, self.sizes)

    def view(self, stage: Stage, unit: Unit) -> View:
        """Build the view of a unit that a stage gets."""

        rows = None if len(unit) == len(self) else unit.rows

        def part(tensor: Tensor) -> Tensor:
            if rows is None:
                return tensor
            return tensor[rows]

        notes = notes_of(self.notes, stage, rows)
        tokens = partial(part, self.source)
        if stage.place is not Place.LAYER:
            return ImageView(part(self.hidden), tokens=tokens, arriving=unit.arriving, notes=notes, merged=True)
        # Signals are passed as functions, so one that the stage does not read is never computed.
        hidden: Callable[[], Tensor] | None = None
        before: Callable[[], Tensor] | None = None
        signals: dict[Signal, Callable[[], Tensor]] = {}
        for signal in stage.reads:
            if not isinstance(signal, Hidden):
                signals[signal] = partial(self._signal, signal, unit, part)
                continue
            hidden = lambda: part(self.hidden)  # noqa: E731
            if signal.back and before is None:
                before = partial(part, self.notes[hidden_note(self.layer - signal.back)])
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
        """The token counts from which a stage's budget is computed. Includes the image's grids if the stage reads
        `Cells` and no token of the image was dropped."""
        arriving, grids = unit.arriving, self.sample.grids
        begun = self.begun
        if begun is not None and stage.owner not in begun.opening:
            if unit.image < 0:  # the whole sample
                arriving = replace(arriving, started=begun.count)
            elif begun.sizes is not None:
                arriving = replace(arriving, started=begun.sizes[unit.image])
        alone = self.sample.frames is None and (unit.image >= 0 or len(grids) == 1)
        if alone and ALL_CELLS in stage.reads and len(unit) == arriving.started == arriving.entered:
            return replace(arriving, grids=grids[unit.image])
        return arriving

    def _signal(self, signal: Signal, unit: Unit, part: Change) -> Tensor:
        """Return a signal for the rows of a unit."""
        if isinstance(signal, Cells):
            # A row without a token has no cell: (rows, 3) values become −1.
            none = part(self.source) < 0
            return part(self.notes[CELLS]).masked_fill(none[:, None], -1)
        if isinstance(signal, Columns):
            note = ran_note(signal, self.layer - 1)
            own = part(self.notes[note])
            if signal.pivots:
                return torch.cat((own, self.text[note][unit.image]))
            return own
        if isinstance(signal, Rotary):
            return part(self.notes[rotary_note(self.layer)])
        if isinstance(signal, Resource):
            return self.text[repr(signal)][unit.image]
        if signal.of_ran and not isinstance(signal, Pivots):
            return part(self.notes[ran_note(signal, self.layer - 1)])
        assert self.reader is not None  # a host without a decoder refuses the other signals
        if isinstance(signal, Text):
            columns = self.text[WORDS]
            return self.reader.states(columns[len(columns) - self.sample.text_after[unit.image] :])
        if isinstance(signal, Keys):
            return part(self.reader.read(signal, [unit]))
        if isinstance(signal, Products):
            return part(self.reader.read(signal, [sample_unit(self.sample, len(self))]))
        if isinstance(signal, Normed):
            return self.reader.normed(part(self.hidden))
        if isinstance(signal, Pivots):
            columns = self.text[ran_note(signal, self.layer - 1)][unit.image]
            rows = self.reader.normed(self.reader.states(columns.clamp(min=0)))
            return rows * (columns >= 0)[:, None]
        assert isinstance(signal, Attention)
        return self.reader.read(signal, asking_units(signal, self.sample, self.sizes, unit))

    def behind(self, decision: Decision, stage: Stage) -> "SampleRows":
        """Return the rows that a second stage before the same layer sees after the first stage's cut."""
        cut = decision.cut
        # The attention among the rows left by the first stage is not computed.
        ahead = any(isinstance(signal, Keys) or getattr(signal, "layer", "") == "next" for signal in stage.reads)
        if cut.stays is not None or ahead:
            raise UnsupportedError(
                f"Two stages cut before layer {self.layer}, and the second reads values that are not computed for the "
                "tokens left by the first. Move one of them to another layer."
            )
        source = look_up(cut.source, self.source)
        # For example rows stand for tokens 3 5 8, and the cut keeps rows 0 2: source becomes 3 8.
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
    """Return the units whose attention is read separately for a unit.

    In a sample with several images, the text behind each image attends to that image, and the last row to all.
    """
    if signal.rows == "last" or sizes is None or unit.image >= 0:
        return [unit]
    return image_units(sample, sizes)


def decide(rows: SampleRows, stages: Sequence[Stage]) -> Decision | None:
    """Run the stages before a layer on a sample, each on what the previous one left. None: nothing is dropped."""
    decision: Decision | None = None
    answer: Decision | None = None
    for stage in stages:
        if answer is not None:  # the previous stage cut
            rows = rows.behind(answer, stage)
        units = rows.units(stage)
        views = [rows.view(stage, unit) for unit in units]
        # Skip units that have no rows left.
        cuts = [stage.cut(view) if len(view) else None for view in views]
        if not stage.drops:  # the stage only leaves notes
            answer = None
            notes = _notes(cuts, stage)
            rows.notes.update(notes)
            if decision is not None:
                decision = Decision(decision.cut.with_notes({**decision.cut.notes, **notes}), decision.sizes)
            continue
        answer = _answer(cuts, units, rows, stage)
        if answer is None:
            continue
        if decision is None:
            cut = answer.cut
        else:
            cut = decision.cut.then(answer.cut)
        decision = Decision(cut, answer.sizes)
    return decision


def _notes(cuts: Sequence[Cut | None], stage: Stage) -> Mapping[str, Tensor]:
    """Concatenate the notes of a stage that drops nothing over its units."""
    notes_of_units = [cut.with_owner(stage.owner).notes for cut in cuts if cut is not None]
    if not notes_of_units:
        return {}
    first = notes_of_units[0]
    if len(notes_of_units) == 1:
        return first
    return {name: torch.cat([notes[name] for notes in notes_of_units]) for name in first}


def _answer(cuts: Sequence[Cut | None], units: Sequence[Unit], rows: SampleRows, stage: Stage) -> Decision | None:
    """Join the cuts of a sample's units into one decision; None if nothing is dropped."""
    if len(cuts) == 1 and cuts[0] is not None:
        cut = cuts[0].with_owner(stage.owner)
        of_one_image = rows.sizes is not None and len(rows.sizes) == 1
        return Decision(cut, (cut._count,) if of_one_image and isinstance(cut._count, int) else None)
    if all([cut is None for cut in cuts]):
        return None
    unit_cuts = []
    for unit_cut, unit in zip(cuts, units, strict=True):
        unit_cuts.append(Cut.stay(len(unit)) if unit_cut is None else unit_cut.with_owner(stage.owner))
    cut = join_units(unit_cuts, rows.source.device, lambda: rows.hidden)
    if cut.stays is not None or rows.sizes is None or len(rows.sizes) != len(units):
        return Decision(cut, None)
    counts = tuple(part.count for part in unit_cuts if isinstance(part.count, int))
    return Decision(cut, counts if len(counts) == len(units) else None)


def join_units(cuts: Sequence[Cut], device: torch.device, hidden: Callable[[], Tensor]) -> Cut:
    """Join the cuts of a sample's units into one cut of the sample.

    Example: of two images of three tokens, the first loses its second token and the second its first.

        sources   0 2 and 1 2      joined   0 2 4 5
        parents   0 −1 1, −1 0 1   joined   0 −1 1 −1 2 3

    Args:
        cuts: One per unit, in order.
        device: Device of the sample's tensors.
        hidden: Returns all arriving rows, (rows, width); called only if a unit merges rows.
    """
    if len(cuts) == 1:
        return cuts[0]
    explicit = []
    for cut in cuts:
        if cut.stays_whole:  # replace by explicit indices
            places = torch.arange(cut.arriving, device=device)
            cut = Cut.join(places, places, cut.notes)
        explicit.append(cut)
    cuts, notes = explicit, {}
    # A note needs values for all rows, so drop notes that only some units have.
    for name in set.intersection(*(set(cut.notes) for cut in cuts)):
        parts = [cut.notes[name] for cut in cuts]
        if parts[0].dim() > 1:  # pad vectors of different widths, such as other towers' features, with zeros
            width = max(part.shape[-1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        notes[name] = torch.cat(parts)
    if any(cut.stays is not None for cut in cuts):
        masks = [cut.parent >= 0 if cut.stays is None else cut.stays for cut in cuts]
        return Cut.keep(torch.cat(masks), notes)
    tokens = [cut.arriving for cut in cuts]
    starts = [0, *itertools.accumulate(tokens)]
    moved = []
    for cut, start in zip(cuts, starts, strict=False):
        source = cut.source
        if start and cut.rows is None:  # every row stands for a token, so there is no −1
            source = source + start
        elif start:
            source = torch.where(source < 0, source, source + start)
        moved.append(source)
    if all(cut.rows is None for cut in cuts):
        return Cut.take(torch.cat(moved), sum(tokens), notes)
    firsts = [0, *itertools.accumulate(len(source) for source in moved)]  # each unit's first row in the joined cut
    parents = [cut.parent for cut in cuts]
    placed = [torch.where(parent < 0, parent, parent + first) for parent, first in zip(parents, firsts, strict=False)]
    merged = [cut.rows_left(part) for cut, part in zip(cuts, torch.split(hidden(), tokens), strict=True)]
    return Cut.merge(torch.cat(moved), torch.cat(merged), torch.cat(placed), notes)


# -- a layer's cuts, bucket by bucket -----------------------------------------------------------------------------


class BucketReader(Protocol):
    """Reads a layer for all samples of a bucket: `RowsReader`, or several of them."""

    def read(self, signal: Signal, units: Sequence[Unit]) -> Tensor: ...
    def reduce(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]: ...
    def in_prompt(self, columns: Tensor) -> Tensor: ...


ReaderOf = Callable[[Bucket], BucketReader]
Decided = tuple[Bucket, list[Cut], Sizes | None]
"""A bucket, the cut of each of its samples, and the rows left of each image."""


def cut_before(forward: Forward, call: LayerCall, reader_of: ReaderOf) -> None:
    """Run the stages before a layer, and store what later stages will read.

    Args:
        forward: The forward; what is left of its samples changes.
        call: The layer's call. Merged rows are written into a copy of its input.
        reader_of: Returns the reader of this layer for a bucket.
    """
    program, layer = forward.program, call.index
    if layer == 0 and program.finds_raters:
        for bucket in forward.outcome.buckets:
            if bucket.left:
                bucket.to(call.hidden.device)
                bucket.text[RATERS] = raters_of(forward, bucket, call.hidden)
    if program.before(layer):
        _cut(forward, call, reader_of)
    if layer == 0:
        for bucket in forward.outcome.buckets:
            bucket.begun = Begun(bucket.left, bucket.sizes, program.opening)
    if program.remembers(layer):
        for bucket in forward.outcome.buckets:
            if bucket.left:
                bucket.to(call.hidden.device)
                bucket.notes[hidden_note(layer)] = call.hidden[bucket.owners, bucket.columns]
    forward.outcome.row_maps.append(forward.outcome.rows)


def note_attending(bucket: Bucket, signals: Sequence[Signal], layer: int, reader: BucketReader) -> None:
    """Store signals of a running layer's queries and keys, for stages before the next layer."""
    rows = sample_unit(bucket.first, bucket.left)
    if bucket.sizes is None:
        images = [rows]
    else:
        images = image_units(bucket.first, bucket.sizes)
    for signal in signals:
        name = ran_note(signal, layer)
        if isinstance(signal, Pivots):
            bucket.text[name] = reader.read(signal, images)
        elif not isinstance(signal, Attention):
            bucket.notes[name] = reader.read(signal, images)
        if isinstance(signal, Columns) and signal.pivots:
            text = reader.read(Pivots(signal.pivots), images)
            bucket.text[name] = reader.in_prompt(text.flatten(1)).view_as(text)
    for stream in streams([signal for signal in signals if isinstance(signal, Attention)]):
        units = asking_units(stream[0], bucket.first, bucket.sizes, rows)
        for attention, values in reader.reduce(stream, units).items():
            bucket.notes[ran_note(attention, layer)] = values


def _cut(forward: Forward, call: LayerCall, reader_of: ReaderOf) -> None:
    """Cut before a layer, and record it if tokens may be dropped there."""
    program, norm = forward.program, forward.family.final_norm
    before = forward.vision_left() if call.index in program.cuts else ()
    decided = []
    for bucket in forward.outcome.buckets:
        cuts, sizes = decide_bucket(bucket, program, call.index, call.hidden, reader_of, norm)
        decided.append((bucket, cuts, sizes))
    decided = _with_counts(decided)
    forward.outcome.buckets = [bucket for bucket, _, _ in decided]
    dropped, merged = False, []
    for bucket, cuts, sizes in decided:
        taken = bucket.take(cuts, sizes) if cuts else None
        if taken is None:
            continue
        dropped = True
        rows, came_from = taken
        if rows is not None:
            columns = bucket.columns
            owners = bucket.owners.expand_as(columns)  # (samples, 1) -> (samples, rows): the batch index of each row
            merged.append((owners.flatten(), columns.flatten(), rows.flatten(0, 1)))
            forward.move_additions(bucket, call.index, came_from)
    if merged:  # one write for all buckets
        owners, columns, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
        call.hidden = call.hidden.index_put((owners, columns), rows.to(call.hidden.dtype))
    if dropped:
        forward.lay_out(program.renumbers_before(call.index))
    if call.index in program.cuts:
        forward.record_cut("layer", call.index, before)


@dataclass(frozen=True, slots=True)
class SampleReader:
    """Reads a layer for one sample of a bucket. Nothing is computed before it is requested.

    Attributes:
        read: Returns a signal for the concatenated rows of some units: see `RowsReader.read`, for one sample.
        states: Returns the stream entering the layer at some columns, (columns, width).
        normed: Applies the norm before the model's head to rows of the stream, (rows, width).
    """

    read: Callable[[Signal, Sequence[Unit]], Tensor]
    states: Change
    normed: Change


def decide_bucket(
    bucket: Bucket, program: Program, layer: int, hidden: Tensor, reader_of: ReaderOf, norm: Change
) -> tuple[list[Cut], Sizes | None]:
    """Run the stages before a layer on each sample of a bucket.

    Args:
        bucket: The samples, and their rows that are left.
        program: Says which stages run here.
        layer: The decoder layer.
        hidden: Its full-length input, (samples of the batch, columns, width).
        reader_of: Returns the reader of this layer for a bucket.
        norm: The norm before the model's head.

    Returns:
        A cut for each sample, with all notes of its rows; no cuts if no rows arrive. And the rows left of each image;
        None if only the device knows.
    """
    if not bucket.source.shape[1]:
        return [], bucket.sizes
    if bucket.index.device != hidden.device:
        bucket.to(hidden.device)
    stages = program.before(layer)
    reader = cache(partial(reader_of, bucket))  # built on first use
    left: list[Sizes | None] = []  # equal for all samples

    def of_sample(sample: Tensors, pick: Pick) -> Cut:
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
            SampleReader(lambda signal, units: pick(reader().read(signal, units)), states, norm),
            sample["text"],
            bucket.begun,
        )
        decision = decide(rows, stages)
        for name in program.done_with(layer):
            rows.notes.pop(name, None)
        left.append(bucket.sizes if decision is None else decision.sizes)
        arrived = Cut.stay(len(rows), rows.notes)
        if decision is None:
            return arrived
        cut = decision.cut.to(columns.device)
        if cut.stays is None and cut.rows is None and cut.count == bucket.left:  # all tokens stay
            cut = Cut.stay(len(rows), cut.notes)
        return arrived.then(cut)

    tensors = {name: getattr(bucket, name) for name in ("index", "columns", "source", "notes", "text")}
    cuts = together(of_sample, tensors)
    return [cut for cut in cuts if cut is not None], left[0]


def _with_counts(decided: Sequence[Decided]) -> list[Decided]:
    """Replace masks by counts that the host knows.

    A mask says which tokens stay but not how many. This takes one host sync for the whole batch.
    """
    sums = []
    for bucket, cuts, _ in decided:
        stays = [cut._parts["stays"] for cut in cuts if "stays" in cut._parts]
        if stays:
            images = torch.split(stack_samples(stays), list(bucket.sizes or (bucket.left,)), dim=1)
            counts_of_images = torch.stack([image.sum(dim=1) for image in images], dim=1)  # (samples, images)
            sums.append(counts_of_images.flatten())
    if not sums:
        return list(decided)
    numbers = iter(torch.cat([counts.to(sums[0].device) for counts in sums]).tolist())
    counted: list[Decided] = []
    for bucket, cuts, sizes in decided:
        if not cuts or cuts[0].stays is None:
            counted.append((bucket, cuts, sizes))
        else:
            counted += _divide(bucket, cuts, numbers)
    return counted


def _divide(bucket: Bucket, cuts: Sequence[Cut], numbers: Iterator[int]) -> list[Decided]:
    """Split a bucket into parts whose samples keep equally many tokens of each image. Returns each with its cuts.

    Args:
        bucket: The samples.
        cuts: Cuts made of masks.
        numbers: How many tokens stay of each image of each sample, in order; consumed from the front.
    """
    images = len(bucket.sizes or (1,))
    counts = [tuple(itertools.islice(numbers, images)) for _ in cuts]
    divided: list[Decided] = []
    for places in alike(counts):
        left = counts[places[0]]

        def first_of(mask: Tensors, _: Pick, count: int = sum(left)) -> Cut:
            return cuts[0].with_tensors(mask).first(count)

        part = together(first_of, stack_samples([cuts[place].tensors() for place in places]))
        sizes = None if bucket.sizes is None else left
        divided.append((bucket.part(places), [cut for cut in part if cut is not None], sizes))
    return divided
