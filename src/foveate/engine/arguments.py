"""Each layer: what it gets in place of the model's arguments. What the model passes is never changed.

Rows keep the positions of their tokens, unless an extension says otherwise.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import scales_by_position, unsupported
from foveate.core.tensors import on_tensors
from foveate.engine import guards
from foveate.engine.cache import Coming, PrunedLayer
from foveate.engine.forward import Forward, LayerCall
from foveate.engine.lives.bare import SHIFT
from foveate.engine.masks import Remap, Window, width_of
from foveate.engine.rows import BIAS, COUNTED, Rows
from foveate.errors import UnsupportedError
from foveate.families.base import Family

# -- positions ----------------------------------------------------------------------------------------------------


Tables = tuple[Tensor, Tensor]


def scales_queries(family: Family, layer: int) -> bool:
    """Return whether a decoder layer's attention scales queries by their positions (Ministral 3)."""
    attention = family.attentions[layer]
    return attention is not None and scales_by_position(type(attention))  # type: ignore[arg-type]


def tables_moved_up(forward: Forward, layer: int, like: Tensor, shift: Tensor) -> Tables:
    """Return (cos, sin) of all columns at positions reduced by `shift`, of the dtype and on the device of `like`."""
    family = forward.family

    def tables() -> Tables:
        return family.rotary(layer, like, move_up(forward, shift))

    return forward.memo.once(tables, "moved up", shift, family.rotary_type(layer))


def move_up(forward: Forward, shift: Tensor) -> Tensor:
    """Return position ids of all columns, minus the number of tokens dropped before them."""
    ids = ids_of(forward)
    return ids - shift.to(ids.device)[:, None]


def positions_of(forward: Forward, call: LayerCall, rows: Rows | None) -> dict[str, Any]:
    """Return a layer's tables and position ids on rows (None: on all columns), and what extensions give it, by name.

    Computed once for layers that are called alike.
    """

    def positions() -> dict[str, Any]:
        own = dict[str, Any]()
        for arguments in forward.extensions.arguments:
            arguments(forward, call, rows, own)
        if rows is not None:
            if "position_embeddings" not in own and call.kwargs.get("position_embeddings") is not None:
                own["position_embeddings"] = tables_of(call, rows)
            if "position_ids" not in own and "position_ids" in call.kwargs:
                own["position_ids"] = row_ids(forward, call, rows)
        return own

    return forward.memo.once(positions, "positions", *_alike(call, rows))


def tables_of(call: LayerCall, rows: Rows) -> Any:
    """Return (cos, sin) of the rows, at the positions of their tokens."""
    pair = call.kwargs["position_embeddings"]
    return rows.memo.once(lambda: rows.pick(pair), "tables", pair[0])


def row_ids(forward: Forward, call: LayerCall, rows: Rows) -> Tensor | None:
    """Return position ids of the rows, (…, samples, rows); None if the layer does without (`gets_ids`)."""
    if not gets_ids(forward, call):
        return None
    # Each row has the id of its source column; a row without a source reads column 0.
    ids = on_tensors(call.kwargs.get("position_ids"), lambda ids: ids.to(call.device))
    of_rows: Tensor | None = rows.reduce(ids)
    return of_rows


def gets_ids(forward: Forward, call: LayerCall) -> bool:
    """Return whether the layer's attention may read position ids. RoPE does not need them, and flash attention takes
    gaps in them for packed sequences.

    Raises:
        UnsupportedError: If it needs them, with flash attention.
    """
    is_flash = "flash" in forward.backend
    if not scales_queries(forward.family, call.index):
        return forward.family.gathers and not is_flash
    if is_flash:
        raise UnsupportedError(
            f"Layer {call.index} needs position ids, and flash attention would read gaps between the kept positions as "
            "the ends of packed sequences. Load the model with attn_implementation='sdpa'."
        )
    return True


def ids_of(forward: Forward) -> Tensor:
    """Return position ids of a forward's columns, as the model passes them to its rotary embedding.

    Raises:
        UnsupportedError: If it passes none.
    """
    if forward.position_ids is None:
        raise unsupported(
            "passes the decoder's rotary_emb no position_ids, but this method renumbers rows or reads Rotary()"
        )
    return forward.position_ids


# -- what windows count -------------------------------------------------------------------------------------------


def coming_in_window(
    forward: Forward, rows: Rows | None, stored: PrunedLayer | None, past: int, device: torch.device
) -> Tensor | None:
    """Return the columns in which windows count the rows of a call, (samples, rows) int64.

    None if no layer has a window, or if they count these rows and all earlier slots where they are stored.

    Args:
        forward: The forward.
        rows: The rows; None: all columns.
        stored: The slots of earlier calls; None: there are none, or they hold their own columns.
        past: Unpruned columns before this call.
        device: Where the layer runs.
    """
    if not forward.family.windows:
        return None
    shift = None if stored is None else stored.shift
    coming = None if rows is None else rows.window_columns(past, shift, forward.first)
    if coming is not None or stored is None or (shift is None and SHIFT not in stored.beside):
        return coming

    def count() -> Tensor:
        if rows is not None:
            return rows.read + past
        columns = torch.arange(past, past + forward.span, device=device).expand(forward.count, -1)
        return columns if shift is None else columns - shift.to(device)[:, None]

    return forward.memo.once(count, "counted", rows, shift, past, device)


def window_of(
    forward: Forward, layer: int, rows: Rows | None, stored: PrunedLayer | None, past: int, device: torch.device
) -> Window | None:
    """Return what a layer's window counts; see `coming_in_window`. None also if the window reaches all columns.

    Raises:
        UnsupportedError: If rows have new numbers and the layer attends in chunks.
    """
    reach, total = forward.family.windows.get(layer), past + forward.span
    coming = None
    if reach is not None and total > reach.columns:
        coming = coming_in_window(forward, rows, stored, past, device)
    if reach is None or coming is None:
        return None
    numbered = (rows is not None and COUNTED in rows.table) or (stored is not None and stored.shift is not None)
    if numbered and reach.in_chunks:
        raise UnsupportedError(
            f"Layer {layer} attends in chunks of {reach.columns} tokens, and rows with new numbers would be in other "
            "chunks. Use a method with positions='keep'."
        )
    keys = None if stored is None else stored.window_slots(coming)
    if keys is None:
        earlier = torch.arange(past, device=coming.device).expand(len(coming), -1)
        keys = torch.cat((earlier, coming), dim=1)
    columns = coming
    if rows is not None:
        columns = coming.new_zeros(len(coming), forward.span).scatter(1, rows.read, coming)
    return Window(columns, keys, past, reach.columns, numbered, forward.live)


# -- a layer's own arguments ---------------------------------------------------------------------------------------


REPLACED = ("attention_mask", "position_embeddings", "position_ids")
"""Arguments of ordinary layers that may be replaced."""
MISSING = object()
"""Stands for an argument that is not there, which is not None."""


@dataclass(slots=True, eq=False)
class LayerArguments:
    """What layers that are called alike get in place of what the model passes.

    Attributes:
        by_name: The arguments that differ, by name.
        coming: What their caches are told of the rows.
    """

    by_name: dict[str, Any]
    coming: Coming


def own_arguments(forward: Forward, call: LayerCall, rows: Rows | None) -> LayerArguments:
    """Return what a layer on rows (None: on all columns) gets, computed once for all layers that are called alike.

    They are alike if the model passes them the same objects, and their caches hold the same columns.
    """
    alike = forward.memo.once(partial(_own_arguments, forward, call, rows), "own", *_alike(call, rows))
    more = more_at(forward, call, rows)
    return replace(alike, by_name=more | alike.by_name) if more else alike


def _alike(call: LayerCall, rows: Rows | None) -> tuple[Any, ...]:
    """Return what calls have in common that get the same: what the model passes, and what their caches hold."""
    passed = [call.kwargs.get(name, MISSING) for name in REPLACED]
    if isinstance(passed[1], tuple):  # the model may pair the same tables anew for each layer
        passed[1] = passed[1][0]
    facts = () if call.stored is None else call.stored.facts
    return rows, call.kind, call.device, *passed, *facts


def _own_arguments(forward: Forward, call: LayerCall, rows: Rows | None) -> LayerArguments:
    own, coming = dict(positions_of(forward, call, rows)), Coming(None, call.span)
    if rows is not None:
        counted = coming_in_window(forward, rows, call.stored, call.past, call.device)
        beside = {}
        if BIAS in rows.table:
            guards.refuse_bias(forward.family, "A column of the table of rows")
            beside = {BIAS: rows.at(BIAS)}
        columns = rows.unpruned(call.past)
        coming = Coming(columns, call.span, rows.valid is not None, counted, rows.disorder, beside)
    if "attention_mask" not in own:
        own["attention_mask"] = _mask(forward, call, rows, coming)
    return LayerArguments(own, coming)


def more_at(forward: Forward, call: LayerCall, rows: Rows | None) -> dict[str, Any]:
    """Return the arguments that ordinary layers do not get, at rows, by name; those only that change."""
    if rows is None or not forward.family.gathers:
        return {}
    every = {name: (value, rows.reduce(value)) for name, value in call.more.items()}
    return {name: _with_pads(name, own, rows) for name, (value, own) in every.items() if own is not value}


def _mask(forward: Forward, call: LayerCall, rows: Rows | None, coming: Coming) -> Any:
    """Return the layer's mask.

    Args:
        forward: The forward.
        call: The layer's call.
        rows: The rows it runs on; None: all columns.
        coming: What its cache is told of these.
    """
    refuse_flash(forward, call)
    mask, stored, columns = call.kwargs.get("attention_mask"), call.stored, coming.columns
    padded_rows = rows is not None and rows.valid is not None
    padded_cache = stored is not None and stored.ragged
    ragged = padded_rows or padded_cache
    bias = coming.beside.get(BIAS)
    if stored is not None:
        bias = stored.values_of(BIAS, bias, coming.span if columns is None else columns.shape[1])
    if bias is not None and forward.backend not in ("sdpa", "eager"):
        raise UnsupportedError(
            f"This method adds to the logits of keys, which {forward.backend} does not take. Load the model with "
            "attn_implementation='sdpa' or 'eager'."
        )
    if mask is None and not ragged and bias is None:
        return None
    samples, span, total = call.samples, call.span, call.past + call.span
    window = None if mask is None else window_of(forward, call.index, rows, stored, call.past, call.device)

    def make_mask() -> Any:
        if rows is None:
            queries = torch.arange(span, device=call.device).expand(samples, -1)
        else:
            queries = rows.read
        keys = columns  # if there is a cache, replaced by its slots followed by these
        if stored is not None:
            keys = stored.columns(span if columns is None else columns, samples, call.device)
        assert keys is not None
        if mask is not None and (stored is None or stored.window is None) and width_of(mask) != total:
            raise unsupported(f"makes masks of {width_of(mask)} columns where the sequence has {total}")
        remap = Remap(queries, keys, call.past, total, ragged, call.is_causal, window)
        remapped = remap(mask, forward.backend)
        return remapped if bias is None else remap.with_bias(remapped, bias, call.input.dtype)

    if stored is None:
        return forward.memo.once(make_mask, "mask", mask, rows, None, 0, bias)
    # The cache slots read in a step are all visible to it, so the mask depends only on their padding. What a window
    # counts depends on them all.
    slots = stored.held or stored.base if window is None else window.keys
    return forward.memo.once(make_mask, "mask", mask, rows, slots, stored.base_end, bias)


def refuse_flash(forward: Forward, call: LayerCall) -> None:
    """Refuse flash attention in a layer with a window, which it counts in stored tokens, not in columns."""
    if "flash" in forward.backend and call.index in forward.family.windows:
        raise UnsupportedError(
            f"Layer {call.index} has a sliding window, and flash attention counts it in stored tokens: after "
            "dropping, the window would reach too far. Load the model with attn_implementation='sdpa'."
        )


def _with_pads(name: str, value: Any, rows: Rows) -> Any:
    """Return an argument of some rows. In a mask of them, (samples, rows), pads are hidden too."""
    if "mask" not in name or not isinstance(value, Tensor) or value.dim() != 2 or rows.valid is None:
        return value
    return value * rows.valid.to(value.dtype)
