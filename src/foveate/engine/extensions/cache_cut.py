"""Each layer: caches of earlier layers are cut, after a prompt, down to the rows that are left at its end."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import Memo
from foveate.engine.cache import WindowedLayer, pruned_layer
from foveate.engine.extension import Extension
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.rows import Rows


class CacheCut(Extension):
    """Cuts keys and values of `Program.cached` layers."""

    watches_all = False

    def before_layer(self, forward: Forward, call: LayerCall) -> None:
        """See `Extension`. Even for all columns: a cut of the cache may bring some of them into a window."""
        renumbers = forward.program.renumbers and call.index in forward.program.cached
        if renumbers and call.index in forward.family.windows and forward.drops and call.cache is not None:
            call.stored = stored = pruned_layer(call.cache, call.index)
            if isinstance(stored, WindowedLayer):
                stored.waits = True

    def end(self, forward: Forward, cache: Any) -> None:
        """See `Extension`."""
        if forward.drops and cache is not None:
            _cut(forward, cache)
            for layer in cache.layers:
                if isinstance(layer, WindowedLayer):
                    layer.release()


EXTENSION = CacheCut


def _cut(forward: Forward, cache: Any) -> None:
    """Cut the layers that hold rows which later cuts dropped."""
    stateful = {*forward.family.recurrent, *forward.family.lenders}
    layers = [index for index in forward.program.cached if index < len(cache.layers) and index not in stateful]
    final = forward.outcome.rows
    if not layers or final is None:
        return
    wanted = Memo()
    for index in layers:
        rows = forward.outcome.ran[index]
        if rows is not None and rows.generation == final.generation:
            continue
        stored = pruned_layer(cache, index)
        device, generation = stored.keys.device, 0 if rows is None else rows.generation
        alike = partial(_lasting, forward, rows, final, device)
        stored.keep(*wanted.once(alike, rows is None, generation, device))
        forward.tell_cut("kv", index, rows)
    # The tokens before this cut: those that the tower left, or all if it did not cut.
    entered = tuple([sample.vision_tokens for sample in forward.samples])
    forward.note_cut("kv", None, next((cut.after for cut in forward.outcome.cuts if cut.layer is None), entered))


def _lasting(forward: Forward, rows: Rows | None, final: Rows, device: torch.device) -> tuple[Tensor, Sequence[int]]:
    """Return which rows of layers are text or left at the end, and how many: see `PrunedLayer.keep`.

    Args:
        forward: Knows which columns are padding.
        rows: The rows that these layers hold; None: all columns.
        final: The rows at the end.
        device: Where the layers are.
    """
    if rows is not None:
        return rows.on(device).that_last(final), final.lengths
    assert forward.unpadded is not None
    texts = [sample.live - len(sample.vision) for sample in forward.samples]
    counts = [text + count for text, count in zip(texts, final.counts, strict=True)]
    return final.on(device).columns_left & (forward.unpadded.to(device) != 0), counts
