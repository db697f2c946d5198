"""Each layer, first: what the stages before it see of each sample, and which vision tokens they drop or merge."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.cut import Cut, look_up, note_of
from foveate.core.signals import Cells, Hidden, Signal
from foveate.core.tensors import Change
from foveate.core.units import Arriving, Unit
from foveate.core.views import ImageView, LayerView, View
from foveate.engine.attending import RATERS, RowsReader, streams
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.program import Program, hidden_note, names_of, ran_note
from foveate.engine.prompt_samples import FirstLayer, Sample, image_units, sample_unit
from foveate.engine.reading import raters_of
from foveate.engine.rows import BIAS, Decision, Rows, Sizes
from foveate.errors import UnsupportedError

ALL_CELLS = Cells()


@dataclass(slots=True, eq=False)
class SampleRows:
    """One sample's vision rows before a decoder layer. Nothing is read of them before it is requested.

    Attributes:
        layer: The decoder layer (0-based).
        table: The rows that arrive, of all samples.
        member: Index of the sample.
        stream: The stream entering the layer, (columns, width); for a host with its own decoder, only the words.
        reader_of: Returns the reader of the layer's queries and keys for a sample; None if the host has no decoder to
            read.
        norm: The norm before the model's head.
        cut: What earlier stages before this layer left of the rows that arrive; None: all.
        sizes: Rows of each image.
    """

    layer: int
    table: Rows
    member: int
    stream: Tensor
    reader_of: Callable[[int], RowsReader] | None = None
    norm: Change = lambda rows: rows
    cut: Cut | None = None
    sizes: Sizes = field(init=False)
    _hidden: Tensor | None = None

    def __post_init__(self) -> None:
        self.sizes = self.table.sizes[self.member]

    def __len__(self) -> int:
        if self.cut is None:
            return self.table.counts[self.member]
        return int(self.cut.count)

    @property
    def sample(self) -> Sample:
        """What the host knows of the sample."""
        return self.table.samples[self.member]

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these rows: (rows, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.stream[self.table.columns[self.member]]
        return self._hidden

    @property
    def tokens(self) -> Tensor:
        """The token that each row stands for, (rows,) int64; −1 for none."""
        tokens = self.table.tokens[self.member]
        if self.cut is None:
            return tokens
        return look_up(self.cut.source, tokens)

    @property
    def all_rows(self) -> Unit:
        return sample_unit(self.sample, len(self))

    def note(self, name: str) -> Tensor:
        """Return what was remembered of these rows, (rows, …)."""
        if self.cut is None:
            return self.table.note(self.member, name)
        if name in self.cut.notes:
            return self.cut.notes[name]
        return note_of(self.table.note(self.member, name), self.cut.source, self.cut.rows)

    def note_of(self, signal: Signal) -> Tensor:
        return self.note(ran_note(signal, self.layer - signal.of_ran))

    def text_note_of(self, signal: Signal, unit: Unit) -> Tensor:
        return self.table.about[self.member][repr(signal)][unit.image]

    def text_behind(self, unit: Unit) -> Tensor:
        words = self.table.words[self.member]
        return words[len(words) - self.sample.text_after[unit.image] :]

    def read(self, signal: Signal, unit: Unit) -> Tensor:
        assert self.reader_of is not None  # a host without a decoder refuses signals of one
        return self.reader_of(self.member).read(signal, unit)

    def notes_of(self, stage: Stage) -> dict[str, Tensor]:
        """Return the notes of the chain member that a stage belongs to, by the names the member gave them."""
        names = [*self.table.notes[self.member], *(() if self.cut is None else self.cut.notes)]
        return {own: self.note(name) for own, name in names_of(names, stage).items()}

    def leave(self, notes: Mapping[str, Tensor]) -> None:
        """Remember what a stage that drops nothing says of these rows."""
        if self.cut is not None:
            self.cut = self.cut.with_notes({**self.cut.notes, **notes})
            return
        for name, values in notes.items():
            self.table.put_note(self.member, name, values)

    def units(self, stage: Stage) -> list[Unit]:
        """Return the groups of rows that a stage ranks separately."""
        if stage.unit == "sample":
            return [self.all_rows]
        sample, sizes = self.sample, self.sizes
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
        notes = {name: unit.of(note) for name, note in self.notes_of(stage).items()}
        tokens = lambda: unit.of(self.tokens)  # noqa: E731
        if stage.place is not Place.LAYER:
            return ImageView(unit.of(self.hidden), tokens=tokens, arriving=unit.arriving, notes=notes, merged=True)
        # Signals are passed as functions, so one that the stage does not read is never computed.
        hidden: Callable[[], Tensor] | None = None
        before: Callable[[], Tensor] | None = None
        signals: dict[Signal, Callable[[], Tensor]] = {}
        for signal in stage.reads:
            if not isinstance(signal, Hidden):
                signals[signal] = partial(signal.of_rows, self, unit)
                continue
            hidden = lambda: unit.of(self.hidden)  # noqa: E731
            if signal.back and before is None:
                before = partial(unit.of, self.note(hidden_note(self.layer - signal.back)))
        return LayerView(
            hidden=hidden,
            hidden_before=before,
            count=len(unit),
            tokens=tokens,
            device=self.table.device,
            arriving=self._arriving(stage, unit),
            notes=notes,
            signals=signals,
            text_behind=any(unit.text_after),
        )

    def _arriving(self, stage: Stage, unit: Unit) -> Arriving:
        """The token counts from which a stage's budget is computed. Includes the image's grids if the stage reads
        `Cells` and no token of the image was dropped."""
        sample, first = self.sample, self.table.first_layer[self.member]
        arriving, grids = unit.arriving, sample.grids
        if first is not None and stage.owner not in first.openers:
            if unit.image < 0:  # the whole sample
                arriving = replace(arriving, started=first.count)
            elif first.sizes is not None:
                arriving = replace(arriving, started=first.sizes[unit.image])
        is_one_image = sample.frames is None and (unit.image >= 0 or len(grids) == 1)
        if is_one_image and ALL_CELLS in stage.reads and len(unit) == arriving.started == arriving.entered:
            return replace(arriving, grids=grids[unit.image])
        return arriving

    def behind(self, decision: Decision, stage: Stage) -> "SampleRows":
        """Return the rows that a second stage before the same layer sees after the first stage's cut."""
        cut = decision.cut
        # The attention among the rows left by the first stage is not computed.
        if cut.stays is not None or any(signal.ahead for signal in stage.reads):
            raise UnsupportedError(
                f"Two stages cut before layer {self.layer}, and the second reads values that are not computed for the "
                "tokens left by the first. Move one of them to another layer."
            )
        hidden = cut.rows_left(self.hidden)
        rows = replace(self, cut=cut if self.cut is None else self.cut.then(cut), _hidden=hidden)
        rows.sizes = decision.sizes
        return rows


def decide(rows: SampleRows, stages: Sequence[Stage]) -> Decision | None:
    """Run the stages before a layer on a sample, each on what the previous one left. None: nothing is dropped."""
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
        if stage.drops:
            answer = _answer(cuts, units, rows, stage)
        else:  # the stage only leaves notes
            rows.leave(joined_notes([cut.with_owner(stage.owner) for cut in cuts if cut is not None]))
    if answer is None:
        return None if rows.cut is None else Decision(rows.cut, rows.sizes)
    return Decision(answer.cut if rows.cut is None else rows.cut.then(answer.cut), answer.sizes)


def _answer(cuts: Sequence[Cut | None], units: Sequence[Unit], rows: SampleRows, stage: Stage) -> Decision:
    """Join the cuts of a sample's units into one decision."""
    parts = []
    for cut, unit in zip(cuts, units, strict=True):
        parts.append(Cut.stay(len(unit)) if cut is None else cut.with_owner(stage.owner))
    joined, sizes = join_units(parts, rows.table.device, lambda: rows.hidden), rows.sizes
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


ReaderOf = Callable[[int], RowsReader]


def cut_before(forward: Forward, call: LayerCall, reader_of: ReaderOf) -> None:
    """Run the stages before a layer, and store what later stages will read.

    Args:
        forward: The forward; what is left of its samples changes.
        call: The layer's call. Merged rows are written into a copy of its input.
        reader_of: Returns the reader of this layer for a sample.
    """
    program, layer = forward.program, call.index
    rows = forward.outcome.on(call.device)
    if layer == 0 and program.finds_raters:
        for member in rows.members:
            rows.about[member][RATERS] = raters_of(rows, member, call.hidden[member])
    if program.before(layer):
        rows = _cut(forward, call, rows, reader_of)
    for member in rows.members:
        if layer == 0:
            rows.first_layer[member] = FirstLayer(rows.counts[member], rows.sizes[member], program.openers)
        if layer in program.remembered:
            rows.put_note(member, hidden_note(layer), call.hidden[member, rows.columns[member]])


def note_attending(reader: RowsReader, signals: Sequence[Signal]) -> None:
    """Note signals of a running layer's queries and keys, for stages before the next layer."""
    reader.streams = streams(signals)
    for signal in signals:
        signal.note(reader)


def _cut(forward: Forward, call: LayerCall, rows: Rows, reader_of: ReaderOf) -> Rows:
    """Cut before a layer, and note it if tokens may be dropped there. Returns the rows that are left."""
    program, norm = forward.program, forward.family.final_norm
    before = forward.vision_left() if call.index in program.cuts else ()
    decided = []
    for member in rows.members:
        arriving = SampleRows(call.index, rows, member, call.hidden[member], reader_of, norm)
        decided.append((member, decide_all(arriving, program)))
    forward.outcome.table, merges = rows.keep(dict(count_images(decided)))
    for merge in merges:
        forward.move_additions(merge, call.index)
    if merges:  # one write for all samples
        call.hidden = forward.table.store(merges, call.hidden)
    if forward.table is not rows:
        forward.tell_cut("layer", call.index, rows)
    for name in program.biases_before(call.index):
        _add_bias(forward, name)
    if call.index in program.cuts:
        forward.note_cut("layer", call.index, before)
    return forward.table


def _add_bias(forward: Forward, name: str) -> None:
    """Let later layers add a note of the rows to the logits of their keys."""
    table = forward.table
    values = {member: table.note(member, name) for member in table.members if name in table.notes[member]}
    if values:
        forward.outcome.table = table = table.laid_out()  # layers run on rows, even if all stay
        table.put_vision(BIAS, values)


def decide_all(rows: SampleRows, program: Program) -> Decision:
    """Run the stages before a layer on a sample, and forget what nothing reads later."""
    decision = decide(rows, program.before(rows.layer))
    for name in program.done_with(rows.layer):
        rows.table.notes[rows.member].pop(name, None)
    count = rows.table.counts[rows.member]
    if decision is None:
        return Decision(Cut.stay(count), rows.sizes)
    cut = decision.cut.to(rows.table.device)
    if cut.rows is None and cut.stays is None and cut.count == count:  # all tokens stay
        cut = Cut.stay(count, cut.notes)
    return Decision(cut, decision.sizes)


def count_images(decided: Sequence[tuple[int, Decision]]) -> list[tuple[int, Decision]]:
    """Replace masks by indices, in the decisions about samples. This takes one host sync for the whole batch."""
    stays = [(decision.cut.stays, list(decision.sizes or (decision.cut.arriving,))) for _, decision in decided]
    parts = [torch.split(mask, sizes) for mask, sizes in stays if mask is not None]
    sums = [part.sum() for part in itertools.chain(*parts)]  # of each image of each sample
    if not sums:
        return list(decided)
    numbers = iter(torch.stack([number.to(sums[0].device) for number in sums]).tolist())
    counted = []
    for (member, decision), (mask, arrived) in zip(decided, stays, strict=True):
        if mask is not None:
            sizes = tuple(itertools.islice(numbers, len(arrived)))
            decision = Decision(decision.cut.first(sum(sizes)), sizes if decision.sizes is not None else None)
        counted.append((member, decision))
    return counted
