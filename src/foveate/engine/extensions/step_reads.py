"""Decode: which cached vision tokens a step reads, picked once per turn or in each step. All of them stay in the cache.

A prompt's forward reads everything. While its layers attend, the attention that its last text pays to the cached
columns is summed up. Afterwards the slots that steps will read are copied together, once (`LimitedLayer`). A stage
of each step uses the new row's attention instead, in the layer before its own.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate._transformers import attention_of
from foveate.contract.stages import DecodeStage
from foveate.core.attention import attention_rows
from foveate.core.rank import put_marked_first
from foveate.core.tensors import BLOCK_NUMBERS, Memo, send, take_along, without_autocast
from foveate.core.views import Arriving, ReadView
from foveate.engine.arguments import window_of
from foveate.engine.cache import PrunedLayer, length_of, pruned_layer
from foveate.engine.extension import Extension
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.lives.chosen import Chosen
from foveate.engine.lives.limited import CHOICE, KINDS, Choice, Kinds, LimitedLayer, choice_on, kinds_of
from foveate.engine.masks import visibility
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.tap import AttentionHook, tapped_layer, unreadable

TEXT, VISION = 1, 2
"""Values of `Kinds` for columns that are not padding."""


@dataclass(slots=True, eq=False)
class Askers:
    """Whose attention counts in a forward.

    Attributes:
        kinds: (samples, unpruned columns) int8, see `Kinds`.
        rows: (samples, span) bool, the prompt's text behind its pictures, or a step's new rows.
        most: At most this many of them in any sample.
        paid: Attention from them to every column, (samples, unpruned columns) float32, by layer. Before the first layer
            it is the previous chunk's.
    """

    kinds: Tensor
    rows: Tensor
    most: int
    paid: dict[int, Tensor] = field(default_factory=dict)


class StepReads(Extension):
    """Lets decode steps read only some vision tokens, as `Program.reading` says."""

    _asking: Askers | None = None  # of the prompt that is running
    _paid: dict[int, Tensor] | None = None  # `Askers.paid` of the previous chunk of a prompt

    def begin(self, forward: Forward, cache: Any) -> None:
        """See `Extension`. Does nothing if there are no vision tokens."""
        paid, self._paid, self._asking = self._paid or {}, None, None
        if forward.is_prompt and forward.uses_cache and (forward.drops or not forward.samples):
            self._asking = _asking_of(forward, cache, paid if forward.goes_on else {})
        if self._asking is not None:
            self._paid = self._asking.paid

    @contextmanager
    def around_layer(self, forward: Forward, call: LayerCall) -> Iterator[None]:
        """See `Extension`. Sums up the attention that a stage reads."""
        see, attended = _see_of(forward, call, self._asking), False
        if see is None:
            yield
            return

        def attends(queries: Tensor, keys: Tensor, scaling: float, values: Tensor) -> None:
            nonlocal attended
            attended = True
            see(queries, keys, scaling, values)

        with tapped_layer(call.module, attends):
            yield
        if not attended:
            raise unreadable(attention_of(call.module))

    def end(self, forward: Forward, cache: Any) -> None:
        """See `Extension`."""
        if self._asking is not None and cache is not None:
            _limit(forward, self._asking, cache)
        self._asking = None


EXTENSION = StepReads


@dataclass(slots=True, eq=False)
class Slots:
    """A cache layer's slots at the end of a prompt.

    Attributes:
        columns: (samples, slots) int64, −1 for a pad.
        kinds: (samples, slots) int8, the kind of each column.
        counts: Number of vision tokens and of text tokens of each sample.
    """

    columns: Tensor
    kinds: Tensor
    counts: list[tuple[int, int]]

    @classmethod
    def of(cls, layer: PrunedLayer, of_columns: Tensor) -> "Slots":
        """Return the slots of a layer, whose columns are of these kinds. They are counted later."""
        columns = layer.columns(0, len(of_columns), of_columns.device)
        # The kind of each slot's column, 0 for a pad: columns 0 2 −1 and kinds 1 1 2 give 1 2 0.
        kinds = of_columns.take_along_dim(columns.clamp(min=0), dim=1)
        return cls(columns, kinds.masked_fill(columns < 0, 0), [])


def _count(slots: Sequence[Slots]) -> None:
    """Count the tokens of all layers with one host sync."""
    if not slots:
        return
    tallies = [torch.stack([(layer.kinds == kind).sum(dim=1) for kind in (VISION, TEXT)], dim=1) for layer in slots]
    numbers = torch.stack([tally.to(tallies[0].device) for tally in tallies]).tolist()
    for layer, counts in zip(slots, numbers, strict=True):
        layer.counts = [(vision, text) for vision, text in counts]


# -- a prompt -----------------------------------------------------------------------------------------------------


def _asking_of(forward: Forward, cache: Any, paid: dict[int, Tensor]) -> Askers | None:
    """Return whose attention counts in a prompt; None if no vision token is known.

    Args:
        forward: The prompt. It has the samples, if there are images.
        cache: The cache of earlier turns.
        paid: See `Askers`.
    """
    by_layer = (kinds_of(layer) for layer in getattr(cache, "layers", ()) if isinstance(layer, PrunedLayer))
    earlier = next((kinds for kinds in by_layer if kinds is not None), None)
    if (earlier is None and not forward.samples) or forward.unpadded is None:
        return None
    samples, span, live = forward.count, forward.span, forward.live
    past, most = max(0, length_of(cache)) if cache is not None else 0, span
    new = forward.unpadded.new_ones(samples, span, dtype=torch.int8)
    if forward.samples:
        text = forward.table.text
        new = 2 * send(forward.entered.to(torch.int8), text.device) - text.to(torch.int8)
        # entered 1 1 1 0 (columns with a row) and text 1 0 0 0 give new 1 2 2 0: text, vision, vision, padding.
        most = max(sample.text_after[-1] if len(sample.vision) else sample.live for sample in forward.samples)
    if earlier is None:
        old = new.new_ones(samples, 0)
    else:
        old = earlier[:, :past].to(new.device)
    kinds = torch.cat((pad(old, (0, past - old.shape[1]), value=TEXT), new), dim=1)
    if live is not None:
        width = min(live.shape[1], kinds.shape[1])
        kinds[:, -width:] *= live[:, -width:].to(new.device) != 0
    places = torch.arange(span, device=new.device)
    shown = new == VISION
    # First column after the last vision token and what closes its image, which a look has already.
    behind = (shown * (places + 1 + forward.family.closing_tokens)).amax(dim=1, keepdim=True)
    goes_on = ~shown.any(dim=1, keepdim=True)  # in samples with an image in this chunk, only text behind it asks
    before = {
        layer: pad(own, (0, kinds.shape[1] - own.shape[1])) * goes_on.to(own.device) for layer, own in paid.items()
    }
    return Askers(kinds, (kinds[:, past:] == TEXT) & (places >= behind), most, before)


def _limit(forward: Forward, asking: Askers, cache: Any) -> None:
    """Limit from now on what steps read of the layers' caches."""
    stage = forward.program.reading
    assert stage is not None
    looks = stage.layer - (stage.when == "step")
    layers = [index for index in range(looks, len(cache.layers)) if _holds_all(cache, index, forward.family)]
    if stage.when == "step" and looks not in layers:
        raise UnsupportedError(
            f"Layer {looks} has a sliding window, so its attention does not reach all vision tokens. Choose a layer "
            "that follows one with full attention."
        )
    memo, slots = Memo(), {}
    for index in layers:
        stored = pruned_layer(cache, index)
        device = stored.keys.device
        kinds = memo.once(partial(asking.kinds.to, device), device)
        stored.notes = {**stored.notes, KINDS: Kinds(kinds)}
        alike_in = stored.base, stored.base_end, stored.keys.shape[-2], device
        slots[index] = memo.once(partial(Slots.of, stored, kinds), *alike_in)
    _count([*slots.values()])
    if stage.when == "step":
        held, layer = slots[looks], cache.layers[looks]
        nothing = torch.zeros_like(held.columns, dtype=torch.float32)  # nothing was read or attended to yet
        choice = Choice(held.columns, held.kinds, nothing, nothing != 0, layer.seen, held.counts)
        layer.notes = {**layer.notes, CHOICE: choice}
        return
    for index, paid in asking.paid.items():
        held = slots[index]
        reads, counts = pick_slots(stage, held, {"attention": paid.gather(1, held.columns.clamp(min=0))})
        forward.reads[index] = tuple(counts)
        if counts != [vision for vision, _ in held.counts]:
            cache.layers[index] = LimitedLayer(cache.layers[index], _choose(held, reads, counts))


def _holds_all(cache: Any, index: int, family: Family) -> bool:
    """Return whether a layer's cache holds all tokens, so that some may stay unread: no window, and no state."""
    if index in family.recurrent:
        return False
    return index >= len(cache.layers) or not cache.layers[index].is_sliding


def pick_slots(stage: DecodeStage, slots: Slots, signals: dict[str, Tensor]) -> tuple[Tensor, list[int]]:
    """Return which slots are read, (samples, slots) bool, and how many vision tokens that is in each sample.

    Args:
        stage: The stage.
        slots: All slots.
        signals: Signals of each slot, (samples, slots) each, by their names in `ReadView`.
    """
    reads, vision = slots.kinds == TEXT, slots.kinds == VISION
    counts = []
    for place, (number, _) in enumerate(slots.counts):
        if number:
            where = put_marked_first(vision[place])[:number]
            own = {name: signal[place, where] for name, signal in signals.items()}
            cut = stage.cut(ReadView(**own, arriving=Arriving.all_of(number)))
            if cut is not None:
                number = int(cut.count)
                where = where[cut.source[:number].to(where.device)]
            reads[place, where] = True
        counts.append(number)
    return reads, counts


def _choose(slots: Slots, reads: Tensor, counts: Sequence[int]) -> Chosen:
    totals = [text + count for (_, text), count in zip(slots.counts, counts, strict=True)]
    return Chosen.exactly(slots.columns, reads, totals)


# -- while a layer attends ----------------------------------------------------------------------------------------


def _see_of(forward: Forward, call: LayerCall, asking: Askers | None) -> AttentionHook | None:
    """Return what notes the attention that a decode stage reads in a layer; None if it reads none there."""
    stage, stored, index = forward.program.reading, call.stored, call.index
    assert stage is not None
    if call.cache is None or not _holds_all(call.cache, index, forward.family):
        return None
    if asking is not None:
        if stage.when != "turn" or index < stage.layer or not asking.most:
            return None
        shape, every = asking.kinds.shape, asking.paid

        def add(columns: Tensor, paid: Tensor) -> None:
            # (samples, slots) -> (samples, unpruned columns). Padding adds 0 to column 0.
            by_column = paid.new_zeros(shape).scatter_add_(1, columns.clamp(min=0), paid)
            every[index] = every[index] + by_column if index in every else by_column

        return _sum_up(forward, call, asking, add)
    if index != stage.layer - 1 or stored is None or choice_on(stored) is None:
        return None
    kinds = kinds_of(stored)
    assert kinds is not None
    new = torch.ones(call.samples, call.span, dtype=torch.bool, device=call.device)
    kinds = pad(kinds, (0, stored.seen + call.span - kinds.shape[1]), value=TEXT)
    return _sum_up(forward, call, Askers(kinds, new, call.span), partial(_step, forward, call, stage))


def _sum_up(forward: Forward, call: LayerCall, asking: Askers, note: Callable[[Tensor, Tensor], None]) -> AttentionHook:
    """Return a hook that sums the attention that asking rows of a layer pay to each slot.

    Args:
        forward: Knows which rows are left.
        call: The layer's call.
        asking: Which rows ask.
        note: Gets the unpruned column of each slot and the attention it receives, (samples, slots) int64 and float32;
            −1 and 0 for padding.
    """
    device, samples, span = call.device, call.samples, call.span
    marks, kinds = asking.rows.to(device), asking.kinds.to(device)  # (samples, span), (samples, past + span)
    past = kinds.shape[1] - span
    columns = torch.arange(span, device=device).expand(samples, -1)
    coming = columns + past
    if forward.outcome.rows is not None:
        rows = forward.outcome.rows.on(device)
        columns, coming = rows.read, rows.unpruned(past)
        marks = marks.gather(1, columns) & (coming >= 0)
    # A stable sort of 0s and 1s moves rows that ask to the end, in order: with at most two, marks 1 0 0 1 and 0 0 0 1
    # give places 0 3 and 2 3, and marks 1 1 and 0 1.
    real, order = marks.long().sort(dim=1, stable=True)
    fewest = max(0, marks.shape[1] - asking.most)
    places, real = order[:, fewest:], real[:, fewest:]
    earlier = torch.arange(past, device=device).expand(samples, -1)
    if call.stored is None:
        slots = torch.cat((earlier, coming), dim=1)
    else:
        slots = call.stored.columns(coming, samples, device)
    slots = slots.masked_fill(kinds.take_along_dim(slots.clamp(min=0), dim=1) == 0, -1)
    mask = call.kwargs.get("attention_mask")
    every = torch.arange(samples, device=device)
    window = None
    if mask is not None:
        window = window_of(forward, call.index, forward.outcome.rows, call.stored, past, device)
    sees = visibility(mask, every, slots, past, past + span, True, call.is_causal, window)
    assert sees is not None

    @torch.no_grad()
    @without_autocast
    def see(queries: Tensor, keys: Tensor, scaling: float, _: Tensor) -> None:
        query = take_along(queries, places[:, None, :, None], dim=2)
        total, done = query.new_zeros(slots.shape, dtype=torch.float32), 0
        for block in attention_rows(
            query.flatten(0, 1),
            keys.flatten(0, 1),
            scaling,
            visible=lambda some: sees(columns.gather(1, places[:, some])),
            block=max(BLOCK_NUMBERS, call.input.numel()),
            softcap=forward.family.softcap(call.module),
            samples=samples,
        ):
            paid = block.view(samples, -1, *block.shape[1:]).mean(dim=1)  # (samples, some rows, slots)
            lacks = real[:, done : done + paid.shape[1], None] == 0  # filler rows may see nothing: NaN
            total += paid.masked_fill(lacks, 0).sum(dim=1)
            done += paid.shape[1]
        note(slots, total.masked_fill(slots < 0, 0))

    return see


# -- a step -------------------------------------------------------------------------------------------------------


def _step(forward: Forward, call: LayerCall, stage: DecodeStage, columns: Tensor, paid: Tensor) -> None:
    """Run the stage, and let the layers from `stage.layer` on read only the slots it picks."""
    layer, layers = call.stored, call.cache.layers
    assert layer is not None
    choice = choice_on(layer)
    assert choice is not None
    slots = Slots(choice.columns, choice.kinds, [*(choice.counts or ())])
    if not slots.counts:
        _count([slots])
    paid, before = paid[:, : slots.columns.shape[1]], choice.read
    signals = {"attention": paid, "attention_before": choice.attention, "read_before": before}
    reads, counts = pick_slots(stage, slots, signals)
    choice = replace(choice, attention=paid, read=reads, counts=slots.counts)
    layer.notes = {**layer.notes, CHOICE: choice}
    pruned = [index for index in range(stage.layer, len(layers)) if isinstance(layers[index], PrunedLayer)]
    reading = [index for index in pruned if kinds_of(layers[index]) is not None]
    forward.reads.clear()
    forward.reads.update(dict.fromkeys(reading, tuple(counts)))
    # On a CPU this comparison is free. On other devices it would be a host sync.
    if reads.device.type == "cpu" and torch.equal(reads, before):
        return
    chosen = _choose(slots, reads, counts)
    for index in reading:
        if isinstance(layers[index], LimitedLayer):
            layers[index].read(chosen)
        else:
            layers[index] = LimitedLayer(layers[index], chosen)
