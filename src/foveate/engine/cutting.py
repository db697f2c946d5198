"""Each layer, first: the stages before it decide which vision tokens are dropped or merged, bucket by bucket."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.signals import Attention, Columns, KeyNorms, Pivots, Signal
from foveate.core.tensors import Tensors, send
from foveate.engine.bucket import Bucket, Pick, each
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.late import LateStages, hidden_note, ran_note
from foveate.engine.looking import Decision, SampleRows, Unit, asking_units, decide, image_units, sample_unit
from foveate.engine.program import Program
from foveate.engine.raters import RATERS, raters_of
from foveate.engine.reading import streams
from foveate.engine.samples import Begun, Sample
from foveate.engine.trace import Stage

__all__ = ["BucketReader", "cut_before", "decide_bucket", "note_attending", "record", "take_tower_cuts"]


class BucketReader(Protocol):
    """What `RowsReader` reads, for all samples of a bucket."""

    def reduced(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]: ...
    def keys(self) -> Tensor: ...
    def key_norms(self) -> Tensor: ...
    def pivots(self, count: int, units: Sequence[Unit]) -> Tensor: ...
    def in_prompt(self, columns: Tensor) -> Tensor: ...


ReaderOf = Callable[[Bucket], BucketReader]
Norm = Callable[[Tensor], Tensor]


def take_tower_cuts(forward: Forward, program: Program, hidden: Tensor) -> Tensor:
    """Take what the tower has decided as a cut before layer 0.

    Args:
        forward: The forward.
        program: Says where the tower was cut.
        hidden: The decoder's input, (samples, columns, width); an image's rows are in the first of its columns.

    Returns:
        The input, each row in the run of columns of the token that it stands for.
    """
    if program.encodes is None:
        return hidden
    cuts = [_tower_cut(bucket.samples, hidden.device) for bucket in forward.buckets]
    if not any(image.changed for sample in forward.samples for image in sample.media):
        for bucket, (cut, _) in zip(forward.buckets, cuts, strict=True):
            bucket.notes |= cut.notes
        return hidden
    before = forward.vision_left()
    for bucket, (cut, sizes) in zip(forward.buckets, cuts, strict=True):
        rows, _ = bucket.take(cut, sizes)
        if bucket.runs is not None:  # text between an image's tokens: its rows move on into their runs
            assert rows is not None
            came_from = bucket.vision.gather(1, rows)
            hidden = hidden.index_put((bucket.owners, bucket.columns), hidden[bucket.owners, came_from])
            _move_additions(forward, bucket, 0, rows)
    where: Literal["tower", "projector"] = "projector" if program.encodes == "projector" else "tower"
    record(forward, where, None, before)
    _lay_out(forward, program, None)
    return hidden


def _tower_cut(samples: Sequence[Sample], device: torch.device) -> tuple[Cut, tuple[int, ...]]:
    """What the tower made of the images of samples that are alike.

    Returns:
        One cut with the samples in front, which has in the place of new rows the ordinals at which they are in the
        stream; and the rows it leaves of each image.
    """
    sources, rows, parents, notes = [], [], [], dict[str, list[Tensor]]()
    first = row = 0  # tokens and rows of the images before this one
    for images in zip(*(sample.media for sample in samples), strict=True):
        tokens = images[0].free
        source = parent = torch.arange(tokens, device=device).expand(len(images), -1)
        cuts = [image.cut for image in images if image.cut is not None]
        changed = [cut for cut in cuts if not cut.stays_whole]
        if changed:
            source = torch.stack([cut.source for cut in changed]).to(device)
            parent = torch.stack([cut.parent for cut in changed]).to(device)
        sources.append(_moved_on(source, first))
        parents.append(_moved_on(parent, row))
        rows.append(torch.arange(first, first + source.shape[1], device=device).expand_as(source))
        for name in cuts[0].notes if cuts else ():
            stacked = torch.stack([cut.notes[name] for cut in cuts])
            notes.setdefault(name, []).append(stacked.to(device))
        first, row = first + tokens, row + source.shape[1]
    sizes = tuple(part.shape[1] for part in sources)
    joined = {name: torch.cat(parts, dim=1) for name, parts in notes.items()}
    cut = Cut(
        first,
        row,
        source=torch.cat(sources, dim=1),
        parent=torch.cat(parents, dim=1),
        rows=torch.cat(rows, dim=1),
        notes=joined,
    )
    return cut, sizes


def _moved_on(ordinals: Tensor, start: int) -> Tensor:
    """Ordinals counted within an image, as those of its sample, where the image begins at `start`; −1 stays −1."""
    if start == 0:
        return ordinals
    return torch.where(ordinals < 0, ordinals, ordinals + start)


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
            _move_additions(forward, bucket, call.index, came_from)
    if merged:  # one write for all buckets
        owners, columns, rows = (torch.cat(parts) for parts in zip(*merged, strict=True))
        call.hidden = call.hidden.index_put((owners, columns), rows.to(call.hidden.dtype))
    if dropped:
        _lay_out(forward, program, call.index)
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
    bucket: Bucket, program: LateStages, layer: int, hidden: Tensor, reader_of: ReaderOf, norm: Norm
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


def _lay_out(forward: Forward, program: Program, layer: int | None) -> None:
    """Say which rows the coming layers process, and at which positions."""
    before, forward.rows = forward.rows, forward.lay_out()
    if program.renumbers_before(layer):
        forward.rows.number_anew()
    elif before is not None:
        forward.rows.number_on(before)


def _move_additions(forward: Forward, bucket: Bucket, layer: int, came_from: Tensor) -> None:
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
    forward.record.stages.append(Stage(where, layer, before, forward.vision_left(), origin, assign))
