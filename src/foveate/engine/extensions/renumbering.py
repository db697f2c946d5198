"""Each layer: rows are numbered anew, as in a prompt that is that short.

A row's number is its place among the rows of its sample; later cuts keep it. Tokens behind numbered rows move up by as
many positions as tokens were dropped before them on that layer: its `shift`. Example: of positions 0 to 5 the tokens 2
and 3 are dropped, and the rest is numbered 0 1 2 3. The next token has position 4, and the shift is 2.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate.engine.ancestry import Where
from foveate.engine.arguments import gets_ids, ids_of, move_up, scales_queries, tables_moved_up
from foveate.engine.cache import PrunedLayer
from foveate.engine.extension import Context, Extension
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.rows import COUNTED, Rows

GONE = "gone"
"""By how many positions each sample had shrunk when its rows were last numbered, (samples,) int64."""


class Renumbering(Extension):
    """Numbers rows behind the cuts that ask for it, and what comes after them."""

    watches_all = False

    def attach(self, context: Context) -> None:
        """See `Extension`."""
        context.note_positions()

    def after_cut(self, forward: Forward, where: Where, layer: int | None, before: Rows | None) -> None:
        """See `Extension`."""
        if where == "kv":
            assert layer is not None
            _number_cache(forward, layer, before)
        elif forward.program.renumbers_before(layer):
            table = forward.table
            table.put(COUNTED, _places, stays=True)
            gone = forward.entering_rows.to(table.device) - table.row_counts
            table.by_sample = {**table.by_sample, GONE: gone}

    def arguments(self, forward: Forward, call: LayerCall, rows: Rows | None, own: dict[str, Any]) -> None:
        """See `Extension`."""
        shift, pair = call.shift, call.kwargs.get("position_embeddings")
        if rows is not None and COUNTED in rows.table:
            if pair is not None:  # a layer without RoPE gets none
                kind = forward.family.rotary_type(call.index)
                tables = partial(_tables, forward, call, rows, shift)
                own["position_embeddings"] = rows.memo.once(tables, "tables", shift, kind)
            if gets_ids(forward, call):
                own["position_ids"] = _numbers(forward, rows, shift).to(call.device)
        elif shift is not None:
            if pair is not None:
                pair = tables_moved_up(forward, call.index, call.input, shift)
                own["position_embeddings"] = pair
                if rows is not None:
                    own["position_embeddings"] = rows.memo.once(lambda: rows.pick(pair), "tables", pair[0])
            if scales_queries(forward.family, call.index):
                ids = move_up(forward, shift).to(call.device)
                own["position_ids"] = ids if rows is None else rows.reduce(ids)

    def after_store(self, forward: Forward, call: LayerCall) -> None:
        """See `Extension`."""
        stored, rows = call.stored, forward.outcome.rows
        if stored is None or rows is None or GONE not in rows.by_sample:
            return
        own, before = rows.on(stored.keys.device), stored.shift
        gone = own.by_sample[GONE]
        stored.shift = gone if before is None else own.memo.once(lambda: gone + before, "shift", before)


EXTENSION = Renumbering


def _places(rows: Rows) -> Tensor:
    """Each row's place among the real rows of its sample, (samples, rows) int64; of a pad that of the first."""
    count = rows.read.shape[1]
    if rows.valid is None:
        return torch.arange(count, device=rows.device).expand(len(rows.read), -1)
    # With one pad in front, places 0 1 2 become −1 0 1.
    return (torch.arange(-count, 0, device=rows.device) + rows.row_counts[:, None]).clamp(min=0)


def _numbers(forward: Forward, rows: Rows, shift: Tensor | None) -> Tensor:
    """Return position ids of numbered rows, (samples, rows)."""
    ids = ids_of(forward)
    device = ids.device
    # Counting starts at the position of each sample's first column that is not padding.
    ids = ids.expand(forward.count, -1)
    first = ids.gather(1, forward.first.to(device)[:, None])[:, 0]
    if shift is not None:
        first = first - shift.to(device)
    return first[:, None] + rows.on(device).at(COUNTED)


def _tables(forward: Forward, call: LayerCall, rows: Rows, shift: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (cos, sin) of numbered rows."""
    cos, sin = forward.family.rotary(call.index, call.input, _numbers(forward, rows, shift))
    return cos.to(call.device), sin.to(call.device)


def _number_cache(forward: Forward, layer: int, rows: Rows | None) -> None:
    """Number what comes behind a layer's cache that was cut after the prompt; `rows` are those that it held."""
    final, stored = forward.outcome.rows, forward.cache.layers[layer]
    if final is None or GONE not in final.by_sample:
        return
    assert isinstance(stored, PrunedLayer)
    own, before, entered = final.on(stored.keys.device), stored.shift, forward.entering_rows
    gone = own.by_sample[GONE]

    def shift() -> Tensor:
        less = gone if rows is None else gone - entered.to(gone.device) + rows.on(gone.device).row_counts
        return less if before is None else less + before

    stored.shift = own.memo.once(shift, "shift of caches", rows, before)
    if layer in forward.family.windows:
        stored.count_anew(max(final.lengths), stored.shift)
