"""Each layer: what the stages before it see of one sample's rows, and the cut that they come to together."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foveate.contract.stages import Place, Stage
from foveate.core.cut import Cut, note_of
from foveate.core.signals import Attention, Cells, Columns, Hidden, KeyNorms, Keys, Normed, Pivots, Signal
from foveate.core.views import Arriving, ImageView, LayerView, View
from foveate.engine import guards
from foveate.engine.late import hidden_note, ran_note
from foveate.engine.program import CELLS, NotesOf, named
from foveate.engine.samples import Begun, Sample

__all__ = ["Decision", "Reader", "SampleRows", "Unit", "decide"]


Part = Callable[[Tensor], Tensor]
"""Of a tensor with a sample's rows in front, the rows of a unit."""


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
    text_after = tuple(after > 0 for after in sample.text_after)
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
