"""Each layer: the trace's record of a prompt, from what the forward notes of its cuts."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from foveate._transformers import DummyLayer, DynamicSlidingWindowLayer, LinearAttentionLayer
from foveate.core.cut import Cut
from foveate.core.grid import join
from foveate.engine.ancestry import Ancestry, StageRecord
from foveate.engine.cache import PrunedLayer, WindowedLayer, length_of
from foveate.engine.extension import Context, Extension
from foveate.engine.forward import CutNote, Forward, LayerCall
from foveate.engine.prompt_samples import Sample
from foveate.engine.rows import Step
from foveate.engine.trace import PrefillRecord, Trace


class Tracing(Extension):
    """Adds a record of each prompt to the trace. Decode steps add what they read to the latest."""

    watches_all = False

    _trace: Trace
    _forward: Forward | None = None  # whose record is open: a recording runs copies of it
    _cuts = 0  # how many of its cuts are in the record

    def attach(self, context: Context) -> None:
        """See `Extension`."""
        self._trace = context.trace

    def begin(self, forward: Forward, cache: Any) -> None:
        """See `Extension`."""
        self._forward, self._cuts = None, 0
        if forward.is_prefill:
            self._forward, record = forward, _record(forward, cache)
            if not forward.drops:
                whole, ancestries = record.vision_tokens, [(Ancestry(count),) for count in record.vision_tokens]
                cuts = sorted(forward.program.cuts) if forward.samples else ()
                record.stages += [StageRecord("layer", layer, whole, whole, ancestries) for layer in cuts]
            self._trace.add(record)
        if self._trace.history:
            forward.reads = self._trace.history[-1].reads

    def after_store(self, forward: Forward, call: LayerCall) -> None:
        """See `Extension`. A hook on a later layer may read the trace."""
        if forward is self._forward:
            self._catch_up(forward)

    def end(self, forward: Forward, cache: Any) -> None:
        """See `Extension`."""
        if forward is not self._forward:
            return
        self._catch_up(forward)
        self._forward, record, rows = None, self._trace.history[-1], forward.outcome.rows
        if forward.unpadded is not None:
            record._left = forward.unpadded, *((None, None) if rows is None else (rows.read, rows.valid))
        record.cached, record.windows = cache is not None, _windows(cache)
        record.slots = _slots_left(forward, cache) if forward.drops and cache is not None else {}
        record.forget()

    def _catch_up(self, forward: Forward) -> None:
        """Add the cuts since the last time to the record."""
        record, cuts = self._trace.history[-1], forward.outcome.cuts
        if len(cuts) > self._cuts:
            record.stages += [_stage(forward, cut) for cut in cuts[self._cuts :]]
            self._cuts = len(cuts)
            record.forget()


EXTENSION = Tracing


def _record(forward: Forward, cache: Any) -> PrefillRecord:
    """Return the record of a prompt before anything is cut in it."""
    family, samples, live = forward.family, forward.samples, forward.live
    if not samples:
        lengths = (forward.span,) * forward.count if live is None else live.sum(dim=1)
        return PrefillRecord(len(family.layers), lengths, (0,) * forward.count)
    rows: Sequence[int] | Tensor = tuple([sample.live for sample in samples])
    # Include earlier turns: the mask has their columns, or the cache their number.
    if live is not None and live.shape[1] > forward.span:
        rows = live.sum(dim=1)
    elif live is None and cache is not None:
        rows = tuple(count + max(0, length_of(cache)) for count in rows)
    record = PrefillRecord(
        depth=len(family.layers),
        rows=rows,
        vision_tokens=tuple([sample.vision_tokens for sample in samples]),
        media=[sample.media for sample in samples],
        fit=family.fit,
    )
    if forward.program.thin is not None and any(image.ran for sample in samples for image in sample.media):
        record.stages.append(_tower_rows(samples))
    return record


def _tower_rows(samples: Sequence[Sample]) -> StageRecord:
    """Record which rows of each sample ran in late blocks of the tower, over all segments of its images."""
    cuts = []
    for sample in samples:
        segments = list(itertools.chain.from_iterable(image.ran for image in sample.media))
        cuts.append(join(segments or [Cut.stay(0)]))
    before, after = tuple(cut.arriving for cut in cuts), tuple(len(cut.source) for cut in cuts)
    ancestries = [(Ancestry(cut.arriving, (Step(cut.source, cut.parent),)),) for cut in cuts]
    return StageRecord("tower", None, before, after, ancestries, rows=True)


def _stage(forward: Forward, cut: CutNote) -> StageRecord:
    """Return the record of a cut."""
    table, ancestries = forward.table, []
    for member, sample in enumerate(forward.samples):
        fixed = None
        if sample.ordinals is not None:
            fixed = *sample.ordinals, table.slots(member, cut.columns[member].to(table.device))
        ancestries.append((Ancestry(sample.vision_tokens, cut.steps[member], fixed),))
    return StageRecord(cut.where, cut.layer, cut.before, cut.after, ancestries)


def _windows(cache: Any) -> dict[int, int]:
    """Return the most tokens that a layer can hold, for layers that hold fewer than the prompt without any dropping."""
    most = {}
    for index, layer in enumerate(getattr(cache, "layers", ())):
        if isinstance(layer, DynamicSlidingWindowLayer):
            most[index] = layer.sliding_window - 1
        elif isinstance(layer, WindowedLayer) and layer.base is None:
            most[index] = layer.window - 1
        elif isinstance(layer, LinearAttentionLayer | DummyLayer):
            most[index] = 0
    return most


def _slots_left(forward: Forward, cache: Any) -> dict[int, Callable[[], list[int]]]:
    """Return what counts each sample's slots, for each layer whose tokens were dropped."""
    dead = [len(sample.text) - len(sample.words) for sample in forward.samples]
    pruned = [(index, layer) for index, layer in enumerate(cache.layers) if isinstance(layer, PrunedLayer)]
    return {index: layer.valid_slots(dead) for index, layer in pruned if layer.base is not None}
