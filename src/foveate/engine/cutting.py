"""Each layer, first: what the stages before it see of each sample, and which vision tokens they drop or merge."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.cut import Cut, look_up, note_of
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
from foveate.core.tensors import Change
from foveate.core.views import Arriving, ImageView, LayerView, View
from foveate.engine.attending import RATERS, RowsReader, streams
from foveate.engine.forward import Forward, LayerCall, places_of
from foveate.engine.left import Left
from foveate.engine.program import CELLS, Program, hidden_note, notes_of, ran_note
from foveate.engine.prompt_samples import Begun, Sample, Unit, image_units, sample_unit
from foveate.engine.reading import raters_of
from foveate.errors import UnsupportedError

ALL_CELLS = Cells()


class Decision(NamedTuple):
    """The rows of a sample that the stages before a layer leave.

    Attributes:
        cut: The cut of the sample's rows.
        sizes: Rows left of each image, of a mask those that arrive; None after a cut that ranked all of them together.
    """

    cut: Cut
    sizes: tuple[int, ...] | None


@dataclass(slots=True, eq=False)
class SampleRows:
    """One sample's vision rows before a decoder layer. Nothing is read of them before it is requested.

    Attributes:
        layer: The decoder layer (0-based).
        left: The sample, and its rows that are left.
        stream: The stream entering the layer, (columns, width); for a host with its own decoder, only the words.
        reader_of: Returns the reader of the layer's queries and keys; None if the host has no decoder to read.
        norm: The norm before the model's head.
    """

    layer: int
    left: Left
    stream: Tensor
    reader_of: Callable[[Left], RowsReader] | None = None
    norm: Change = lambda rows: rows
    _hidden: Tensor | None = None

    def __len__(self) -> int:
        return len(self.left)

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these rows: (rows, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.stream[self.left.columns]
        return self._hidden

    @property
    def reader(self) -> RowsReader:
        """Reads the layer's queries and keys."""
        assert self.reader_of is not None  # a host without a decoder refuses signals of one
        return self.reader_of(self.left)

    def units(self, stage: Stage) -> list[Unit]:
        """Return the groups of rows that a stage ranks separately."""
        if stage.unit == "sample":
            return [sample_unit(self.left.sample, len(self))]
        sample, sizes = self.left.sample, self.left.sizes
        frames = sample.frames
        by_frame = stage.unit == "image" and frames is not None and len(frames) > len(sample.media)
        if sizes is None or by_frame or (frames is not None and len(frames) != len(sizes)):
            raise UnsupportedError(
                f"{stage} ranks each {stage.unit} separately, but an earlier stage ranked the sample's tokens in other "
                f"groups, or dropped some before the decoder, so the number of tokens left in each {stage.unit} is not "
                "known. Give both the same scope, or this one scope='sample'."
            )
        return image_units(sample, sizes)

    def view(self, stage: Stage, unit: Unit) -> View:
        """Build the view of a unit that a stage gets."""
        left = self.left
        part: Change = itemgetter(unit.rows)  # from a tensor of all rows to the unit's
        if len(unit) == len(self):
            part = lambda tensor: tensor  # noqa: E731
        notes = {name: part(note) for name, note in notes_of(left.notes, stage).items()}
        tokens = partial(part, left.source)
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
                before = partial(part, left.notes[hidden_note(self.layer - signal.back)])
        return LayerView(
            hidden=hidden,
            hidden_before=before,
            count=len(unit),
            tokens=tokens,
            device=left.source.device,
            arriving=self._arriving(stage, unit),
            notes=notes,
            signals=signals,
            text_behind=any(unit.text_after),
        )

    def _arriving(self, stage: Stage, unit: Unit) -> Arriving:
        """The token counts from which a stage's budget is computed. Includes the image's grids if the stage reads
        `Cells` and no token of the image was dropped."""
        sample, begun = self.left.sample, self.left.begun
        arriving, grids = unit.arriving, sample.grids
        if begun is not None and stage.owner not in begun.opening:
            if unit.image < 0:  # the whole sample
                arriving = replace(arriving, started=begun.count)
            elif begun.sizes is not None:
                arriving = replace(arriving, started=begun.sizes[unit.image])
        alone = sample.frames is None and (unit.image >= 0 or len(grids) == 1)
        if alone and ALL_CELLS in stage.reads and len(unit) == arriving.started == arriving.entered:
            return replace(arriving, grids=grids[unit.image])
        return arriving

    def _signal(self, signal: Signal, unit: Unit, part: Change) -> Tensor:
        """Return a signal for the rows of a unit."""
        left, sample = self.left, self.left.sample
        if isinstance(signal, Cells):
            # A row without a token has no cell: (rows, 3) values become −1.
            none = part(left.source) < 0
            return part(left.notes[CELLS]).masked_fill(none[:, None], -1)
        if isinstance(signal, Columns):
            note = ran_note(signal, self.layer - 1)
            own = part(left.notes[note])
            if signal.pivots:
                return torch.cat((own, left.text[note][unit.image]))
            return own
        if isinstance(signal, Rotary):
            return part(left.notes[ran_note(signal, self.layer)])
        if isinstance(signal, Resource):
            return left.text[repr(signal)][unit.image]
        if signal.of_ran and not isinstance(signal, Pivots):
            return part(left.notes[ran_note(signal, self.layer - 1)])
        if isinstance(signal, Text):
            return self.stream[left.words[len(left.words) - sample.text_after[unit.image] :]]
        if isinstance(signal, Keys | Products):
            return part(self.reader.read(signal, [sample_unit(sample, len(self))]))
        if isinstance(signal, Normed):
            return self.norm(part(self.hidden))
        if isinstance(signal, Pivots):
            columns = left.text[ran_note(signal, self.layer - 1)][unit.image]
            rows = self.norm(self.stream[columns.clamp(min=0)])
            return rows * (columns >= 0)[:, None]
        assert isinstance(signal, Attention)
        return self.reader.read(signal, asking_units(signal, sample, left.sizes, unit))

    def behind(self, decision: Decision, stage: Stage) -> "SampleRows":
        """Return the rows that a second stage before the same layer sees after the first stage's cut."""
        cut = decision.cut
        # The attention among the rows left by the first stage is not computed.
        if cut.stays is not None or any(signal.ahead for signal in stage.reads):
            raise UnsupportedError(
                f"Two stages cut before layer {self.layer}, and the second reads values that are not computed for the "
                "tokens left by the first. Move one of them to another layer."
            )
        # For example rows stand for tokens 3 5 8, and the cut keeps rows 0 2: source becomes 3 8.
        source = look_up(cut.source, self.left.source)
        notes = {name: note_of(note, cut.source, cut.rows) for name, note in self.left.notes.items()}
        left = replace(self.left, source=source, sizes=decision.sizes, notes=notes | dict(cut.notes))
        return replace(self, left=left, _hidden=cut.rows_left(self.hidden))


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
        answer = None
        if all(cut is None for cut in cuts):
            continue
        if not stage.drops:  # the stage only leaves notes
            notes = joined_notes([cut.with_owner(stage.owner) for cut in cuts if cut is not None])
            rows.left.notes.update(notes)
            if decision is not None:
                decision = Decision(decision.cut.with_notes({**decision.cut.notes, **notes}), decision.sizes)
            continue
        answer = _answer(cuts, units, rows, stage)
        if decision is None:
            cut = answer.cut
        else:
            cut = decision.cut.then(answer.cut)
        decision = Decision(cut, answer.sizes)
    return decision


def _answer(cuts: Sequence[Cut | None], units: Sequence[Unit], rows: SampleRows, stage: Stage) -> Decision:
    """Join the cuts of a sample's units into one decision."""
    parts = []
    for cut, unit in zip(cuts, units, strict=True):
        parts.append(Cut.stay(len(unit)) if cut is None else cut.with_owner(stage.owner))
    joined, sizes = join_units(parts, rows.left.source.device, lambda: rows.hidden), rows.left.sizes
    if joined.stays is not None:  # counted later
        return Decision(joined, sizes)
    by_image = sizes is not None and len(sizes) == len(units)
    return Decision(joined, tuple([int(part.count) for part in parts]) if by_image else None)


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
    cuts, notes = explicit, joined_notes(explicit)
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


def joined_notes(cuts: Sequence[Cut]) -> dict[str, Tensor]:
    """Concatenate the notes of a sample's units, (rows of all, …) each; only those that all units have."""
    if len(cuts) == 1:
        return dict(cuts[0].notes)
    notes = {}
    for name in set.intersection(*(set(cut.notes) for cut in cuts)):
        parts = [cut.notes[name] for cut in cuts]
        if parts[0].dim() > 1:  # pad vectors of different widths, such as other towers' features, with zeros
            width = max(part.shape[-1] for part in parts)
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        notes[name] = torch.cat(parts)
    return notes


# -- a layer's cuts, sample by sample -----------------------------------------------------------------------------


ReaderOf = Callable[[Left], RowsReader]


def cut_before(forward: Forward, call: LayerCall, reader_of: ReaderOf) -> None:
    """Run the stages before a layer, and store what later stages will read.

    Args:
        forward: The forward; what is left of its samples changes.
        call: The layer's call. Merged rows are written into a copy of its input.
        reader_of: Returns the reader of this layer for a sample.
    """
    program, layer = forward.program, call.index
    lefts = forward.outcome.on(call.hidden.device)
    if layer == 0 and program.finds_raters:
        for left in lefts:
            left.text[RATERS] = raters_of(left, call.hidden[left.member])
    if program.before(layer):
        _cut(forward, call, lefts, reader_of)
    for left in lefts:
        if layer == 0:
            left.begun = Begun(len(left), left.sizes, program.opening)
        if layer in program.remembered:
            left.notes[hidden_note(layer)] = call.hidden[left.member, left.columns]
    forward.outcome.row_maps.append(forward.outcome.rows)


def note_attending(left: Left, signals: Sequence[Signal], layer: int, reader: RowsReader) -> None:
    """Store signals of a running layer's queries and keys, for stages before the next layer."""
    rows = sample_unit(left.sample, len(left))
    images = [rows] if left.sizes is None else image_units(left.sample, left.sizes)
    for signal in signals:
        name = ran_note(signal, layer)
        if isinstance(signal, Pivots):
            left.text[name] = reader.read(signal, images)
        elif not isinstance(signal, Attention):
            left.notes[name] = reader.read(signal, images)
        if isinstance(signal, Columns) and signal.pivots:
            left.text[name] = reader.in_prompt(reader.read(Pivots(signal.pivots), images))
    for stream in streams([signal for signal in signals if isinstance(signal, Attention)]):
        units = asking_units(stream[0], left.sample, left.sizes, rows)
        for attention, values in reader.reduce(stream, units).items():
            left.notes[ran_note(attention, layer)] = values


def _cut(forward: Forward, call: LayerCall, lefts: Sequence[Left], reader_of: ReaderOf) -> None:
    """Cut before a layer, and record it if tokens may be dropped there."""
    program, norm = forward.program, forward.family.final_norm
    before = forward.vision_left() if call.index in program.cuts else ()
    decided = []
    for left in lefts:
        rows = SampleRows(call.index, left, call.hidden[left.member], reader_of, norm)
        decided.append((left, decide_left(rows, program)))
    dropped, merged = False, []
    for left, decision in count_images(decided):
        taken = left.apply(*decision)
        if taken is None:
            continue
        dropped = True
        rows_made, came_from = taken
        if rows_made is not None:
            merged.append((left, rows_made))
            forward.move_additions(left, call.index, came_from)
    if merged:  # one write for all samples
        owners, columns = places_of([left for left, _ in merged])
        rows_of_all = torch.cat([rows for _, rows in merged]).to(call.hidden.dtype)
        call.hidden = call.hidden.index_put((owners, columns), rows_of_all)
    if dropped:
        forward.lay_out(program.renumbers_before(call.index))
    if call.index in program.cuts:
        forward.record_cut("layer", call.index, before)


def decide_left(rows: SampleRows, program: Program) -> Decision:
    """Run the stages before a layer on a sample. Returns a cut with all notes of its rows."""
    left = rows.left
    decision = decide(rows, program.before(rows.layer))
    for name in program.done_with(rows.layer):
        left.notes.pop(name, None)
    arrived = Cut.stay(len(left), left.notes)
    if decision is None:
        return Decision(arrived, left.sizes)
    cut = decision.cut.to(left.source.device)
    if cut.rows is None and cut.stays is None and cut.count == len(left):  # all tokens stay
        cut = Cut.stay(len(left), cut.notes)
    return Decision(arrived.then(cut), decision.sizes)


def count_images(decided: Sequence[tuple[Left, Decision]]) -> list[tuple[Left, Decision]]:
    """Replace masks by indices. This takes one host sync for the whole batch."""
    stays = [(decision.cut.stays, list(decision.sizes or (len(left),))) for left, decision in decided]
    parts = [torch.split(mask, sizes) for mask, sizes in stays if mask is not None]
    sums = [part.sum() for part in itertools.chain(*parts)]  # of each image of each sample
    if not sums:
        return list(decided)
    numbers = iter(torch.stack([number.to(sums[0].device) for number in sums]).tolist())
    counted = []
    for (left, decision), (mask, arrived) in zip(decided, stays, strict=True):
        if mask is not None:
            sizes = tuple(itertools.islice(numbers, len(arrived)))
            decision = Decision(decision.cut.first(sum(sizes)), sizes if decision.sizes is not None else None)
        counted.append((left, decision))
    return counted
