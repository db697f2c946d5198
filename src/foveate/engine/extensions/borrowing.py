"""Each layer: layers without keys of their own, which attend to those of an earlier layer: they borrow, it lends.

A lender returns all slots that it holds. Its borrowers run later, on fewer rows, so they see fewer of its slots.
"""

from typing import Any

import torch
from torch import Tensor

from foveate.engine.arguments import refuse_flash
from foveate.engine.cache import PrunedLayer, find_pruned, pruned_layer
from foveate.engine.extension import Extension
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.lives.lending import alive_columns, as_seen, lend, lent_by, note_alive
from foveate.engine.masks import Remap, Window
from foveate.engine.rows import Rows
from foveate.errors import UnsupportedError


class Borrowing(Extension):
    """Gives borrowing layers a mask over their lender's slots."""

    def before_layer(self, forward: Forward, call: LayerCall) -> None:
        """See `Extension`. A lender's layer remembers what borrowers need, even if it holds all columns."""
        lends = call.cache is not None and call.index in forward.family.lenders.values()
        if lends and (forward.drops or call.stored is not None):
            call.stored = pruned_layer(call.cache, call.index)
            lend(call.stored)

    def rows_for(self, forward: Forward, call: LayerCall, rows: Rows | None) -> Rows | None:
        """See `Extension`. If only the last row's logits are requested, the model passes that row alone."""
        if call.index not in forward.family.lenders or rows is None:
            return rows
        lender, end = _lender(forward, call), forward.span - call.span
        if end and any(int((sample.text >= end).sum()) < call.span for sample in forward.samples):
            raise UnsupportedError(
                f"This model computes only the last {call.span} rows of its last layers, and some of them may be "
                "dropped. Request logits of only the last row (as generate does) or of all rows, and put text "
                "behind the picture."
            )
        if lender is not None:
            past = lender.seen - forward.span
            note_alive(lender, rows.unpruned(past), past)
        return None if end else rows

    def arguments(self, forward: Forward, call: LayerCall, rows: Rows | None, own: dict[str, Any]) -> None:
        """See `Extension`."""
        if call.index in forward.family.lenders:
            left = forward.outcome.rows and forward.outcome.rows.on(call.device)
            own["attention_mask"] = _mask(forward, call, left)


EXTENSION = Borrowing


def _lender(forward: Forward, call: LayerCall) -> PrunedLayer | None:
    """Return the cache layer of a borrower's lender; None without a cache, or if it was never pruned."""
    return find_pruned(call.cache, forward.family.lenders[call.index])


def _mask(forward: Forward, call: LayerCall, rows: Rows | None) -> Any:
    """Return a borrower's mask; `rows` are those that are left, even if the model passes the last of them alone."""
    lender, span, count, mask = _lender(forward, call), forward.span, call.span, call.kwargs.get("attention_mask")
    past = 0 if lender is None else lender.seen - span
    held, alive = _slots(forward, call, rows)
    if held is None:
        return mask
    ragged = alive is not None or (lender is not None and lender.ragged)
    if mask is None and not ragged:
        return None
    keys = held if alive is None else as_seen(held, alive)
    queries = torch.arange(count, device=keys.device).expand(len(keys), -1)
    if count < span and mask is None:
        queries = queries + span - count
    elif rows is not None and count == span:
        queries = rows.read
    window = None if mask is None else _window(forward, call, rows, held)
    return Remap(queries, keys, past, past + span, ragged, call.is_causal, window)(mask, forward.backend)


def _slots(forward: Forward, call: LayerCall, rows: Rows | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the columns of the slots that a layer's lender returned, (samples, slots), and which of them are seen.

    Either is None if it is all of them.
    """
    lender, span, device = _lender(forward, call), forward.span, call.device
    if lender is not None:
        return lent_by(lender).returned, lent_by(lender).alive
    if rows is None:
        return None, None
    of_lender = forward.outcome.ran[forward.family.lenders[call.index]]  # without a cache
    held = torch.arange(span, device=device).expand(len(rows.read), -1)
    if of_lender is not None:
        held = of_lender.on(device).unpruned(0)
    return held, alive_columns(rows.unpruned(0), 0, None, span)


def _window(forward: Forward, call: LayerCall, rows: Rows | None, held: Tensor) -> Window | None:
    """Return what a borrowing layer's window counts; see `window_of`. Such models do not renumber rows.

    `held` are the columns of the slots that its lender returned.
    """
    refuse_flash(forward, call)
    lender, reach, count = _lender(forward, call), forward.family.windows.get(call.index), call.span
    total = forward.span if lender is None else lender.seen
    if reach is None or total <= reach.columns:
        return None
    past = total - forward.span
    of_lender = forward.outcome.ran[forward.family.lenders[call.index]] if lender is None else None
    counted = None if lender is None else lent_by(lender).counted
    if of_lender is not None:
        counted = of_lender.on(held.device).window_columns(0, None, forward.first)
    coming = None if rows is None else rows.window_columns(past, None, forward.first)
    if counted is None and coming is None:
        return None
    columns = torch.arange(past, total, device=held.device).expand(len(held), -1)
    if rows is not None and coming is not None:
        columns = columns.scatter(1, rows.read, coming)
    # If the model passes only the last rows, its mask has only these.
    last = columns[:, forward.span - count :]
    return Window(last, held if counted is None else counted, total - count, reach.columns, False, forward.live)
