"""Each layer: first its stages cut, then it runs on the rows that are left, and these go back into the full stream."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import cache_of
from foveate.core.signals import Signal
from foveate.core.tensors import send
from foveate.engine import guards
from foveate.engine.arguments import Positions, Remap, width_of
from foveate.engine.cache import CACHE_LAYERS, find_pruned, pruned_layer
from foveate.engine.cutting import cut_before, note_attending
from foveate.engine.forward import Forward, LayerCall, Original, RowMap
from foveate.engine.program import Program
from foveate.engine.reading import AttentionReader, OwnAttention, is_causal
from foveate.engine.reads import noting
from foveate.engine.samples import Bucket
from foveate.families.base import Family, tapped_layer, unreadable
from foveate.families.tap import See

__all__ = ["LayerRunner"]

Tap = AbstractContextManager[None]
"""Reads a layer's own attention while the layer runs, if a stage asks for it."""


BY_PLACE = {"attention_mask", "position_embeddings"}
BY_NAME = {"hidden_states", *BY_PLACE}
"""What a layer must be handed by name, and what else if its input comes by name too."""


class LayerRunner:
    """Stands around every decoder layer's forward."""

    def __init__(self, family: Family, program: Program) -> None:
        self._family = family
        self._program = program
        self._positions = Positions(family, program.renumbers)
        self._devices: dict[int, torch.device] = {}  # of each layer, as its last prefill found it

    def run(self, forward: Forward, index: int, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left, and put them back into the full-length stream."""
        if forward.idle:
            return original(*args, **kwargs)
        cache = cache_of(kwargs)
        stored = find_pruned(cache, index)
        if not forward.drops and stored is None and forward.turn is None:
            return original(*args, **kwargs)
        if stored is not None and stored.reads is not None:
            stored = stored.reads
        expected = len(forward.row_maps) if forward.drops else index
        if (
            index != expected
            or args[1:].count(None) < len(args) - 1
            or not kwargs.keys() >= (BY_PLACE if args else BY_NAME)
        ):
            guards.refuse_layer_call(index, expected, args, kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        if forward.drops and index == 0:
            guards.refuse_first_layer(self._family.layers[0], kwargs, hidden.shape[1], forward.caches, CACHE_LAYERS)
            forward.cache = cache
        elif forward.drops and cache is not forward.cache:
            guards.refuse_other_cache(index)
        module = self._family.layers[index]
        call = LayerCall(index, module, hidden, hidden, args[1:], kwargs, not args, stored)
        del hidden, args  # so that the call alone holds the input
        self._bring_together(forward, call)
        self._positions.move_up(forward, call)
        reader_of = functools.partial(AttentionReader, forward, call, self._family, self._positions)
        if forward.drops:
            cut_before(forward, self._program, call, reader_of, self._family.final_norm)
        tap = self._attention_tap(forward, call, reader_of)
        if forward.rows is None:
            return self._run_whole(forward, call, original, tap)
        return self._run_rows(forward, call, original, tap)

    def _run_whole(
        self, forward: Forward, call: LayerCall, original: Original, tap: AbstractContextManager[None]
    ) -> Any:
        """Run a layer on all columns; in its cache some may be missing."""
        if call.stored is not None:
            call.kwargs["attention_mask"] = self._mask(forward, call)
            call.stored.announce(None, call.hidden.shape[1])
        with tap:
            return call.run(original, call.hidden)

    def _run_rows(
        self, forward: Forward, call: LayerCall, original: Original, tap: AbstractContextManager[None]
    ) -> Any:
        """Run a layer on the rows that are left."""
        assert forward.rows is not None
        rows = forward.rows.on(call.hidden.device)
        recurrent = call.index in self._family.recurrent
        if call.cache is not None and not recurrent:
            call.stored = pruned_layer(call.cache, call.index)
        columns = rows.unpruned(call.past)
        if recurrent:
            call.kwargs["attention_mask"] = _padding(call, rows)
        else:
            call.kwargs["attention_mask"] = self._mask(forward, call, rows, columns)
        call.kwargs["position_embeddings"] = self._positions.tables(forward, call, rows)
        call.kwargs["position_ids"] = self._positions.ids(forward, call, rows)
        if call.stored is not None:
            call.stored.announce(columns, call.hidden.shape[1], ragged=rows.valid is not None)
            if rows.numbered is not None:
                call.stored.shift = rows.shift(call.stored.shift, forward.entering_rows)
        gathered = rows.gather(call.hidden)
        call.hidden = call.entered  # frees the copy with merged rows while the layer runs
        with tap:
            output = call.run(original, gathered)
        if isinstance(output, tuple):
            return (self._put_back(forward, call, rows, output[0]), *output[1:])
        return self._put_back(forward, call, rows, output)

    def _put_back(self, forward: Forward, call: LayerCall, rows: RowMap, output: Tensor) -> Tensor:
        """The full-length stream with a layer's rows in it.

        Behind the last layer, an image's last column gets the last row that is left at or before it: the next token is
        predicted from this column, whose own token may have been dropped.
        """
        full = rows.scatter(call.entered, output)
        if not output.shape[1] or call.index < len(self._family.layers) - 1:
            return full
        if forward.image_ends is not None:
            samples, columns = (send(places, full.device) for places in forward.image_ends)
            return full.index_put((samples, columns), full[samples, rows.last_rows(samples, columns)])
        if forward.ends_in_vision:  # only the last column will be read
            return torch.cat((full[:, :-1], output[:, -1:]), dim=1)
        return full

    # -- devices -----------------------------------------------------------------------------------------------

    def _bring_together(self, forward: Forward, call: LayerCall) -> None:
        """Bring input, tables and mask to where the layer computes."""
        hidden, kwargs = call.hidden, call.kwargs
        if forward.drops or call.index not in self._devices:
            self._devices[call.index] = _device_of(call.module, hidden)
        device = self._devices[call.index]
        if hidden.device != device or kwargs["position_embeddings"][0].device != device:
            call.entered = call.hidden = hidden.to(device)
            cos, sin = kwargs["position_embeddings"]
            kwargs["position_embeddings"] = _here(forward, cos, device), _here(forward, sin, device)
        kwargs["attention_mask"] = _here(forward, kwargs.get("attention_mask"), device)

    # -- masks -------------------------------------------------------------------------------------------------

    def _mask(
        self, forward: Forward, call: LayerCall, rows: RowMap | None = None, columns: Tensor | None = None
    ) -> Any:
        """The layer's mask, made once for all layers whose rows and slots stand for the same columns.

        Args:
            forward: The forward.
            call: The layer's call.
            rows: The rows it runs on; None: all columns.
            columns: Their unpruned columns.
        """
        guards.refuse_sliding_flash(call.index, call.module, forward.backend)
        mask, stored, hidden = call.kwargs.get("attention_mask"), call.stored, call.hidden
        padded_rows = rows is not None and rows.valid is not None
        padded_cache = stored is not None and stored.ragged
        ragged = padded_rows or padded_cache
        if mask is None and not ragged:
            return None
        samples, span, device = hidden.shape[0], hidden.shape[1], hidden.device

        def remapped() -> Any:
            queries = torch.arange(span, device=device).expand(samples, -1) if rows is None else rows.columns
            keys = columns  # with a cache, those it stores in front of them
            if stored is not None:
                keys = stored.columns(span if columns is None else columns, samples, device)
            assert keys is not None
            if mask is not None and (stored is None or stored.window is None) and width_of(mask) != call.past + span:
                guards.refuse_unknown_mask(width_of(mask), call.past + span)
            remap = Remap(queries, keys, call.past, call.past + span, ragged, is_causal(call.module))
            return remap(mask, forward.backend)

        if stored is None:
            return forward.memo.once(remapped, "mask", mask, rows, None, 0)
        # What is read of a layer has no column that a step may not see: its pads alone make the mask.
        return forward.memo.once(remapped, "mask", mask, rows, stored.held or stored.base, stored.base_end)

    # -- reading -----------------------------------------------------------------------------------------------

    def _attention_tap(self, forward: Forward, call: LayerCall, reader_of: Callable[..., AttentionReader]) -> Tap:
        """Reads the layer's own attention while it runs. Made while its arguments are still those of all rows."""
        signals = self._program.signals_while(call.index) if forward.drops else ()
        notes = None if self._program.reading is None else noting(forward, call, self._program, self._family)
        if not signals and notes is None:
            return nullcontext()
        own_attention: OwnAttention = []
        readers = []
        for bucket in forward.buckets if signals else ():
            if bucket.left:
                bucket.to(call.hidden.device)
                readers.append((bucket, reader_of(bucket, own_attention, signals)))
        return _reading(call, signals, readers, own_attention, notes)


@contextmanager
def _reading(
    call: LayerCall,
    signals: Sequence[Signal],
    readers: list[tuple[Bucket, AttentionReader]],
    own_attention: OwnAttention,
    notes: See | None,
) -> Iterator[None]:
    """While a layer runs, reduce its queries and keys as it attends, for stages before the next layer.

    Args:
        call: The layer's.
        signals: What they are reduced to.
        readers: The buckets and how they are read.
        own_attention: Where the readers find the layer's queries and keys.
        notes: Notes what a stage of decoding reads.
    """
    attended = False

    def attends(queries: Tensor, keys: Tensor, scaling: float) -> None:
        nonlocal attended
        attended = True
        if notes is not None:
            notes(queries, keys, scaling)
        own_attention.append((queries, keys, scaling))
        for bucket, reader in readers:
            note_attending(bucket, signals, call.index, reader)
        own_attention.clear()
        readers.clear()  # frees queries and keys before the MLP runs

    with tapped_layer(call.module, attends):
        yield
    if not attended:
        raise unreadable(call.module.self_attn)


def _here(forward: Forward, tensor: Any, device: torch.device) -> Any:
    """A table or mask on the layer's device, moved there once for all its layers."""
    if not isinstance(tensor, Tensor) or tensor.device == device:
        return tensor
    return forward.memo.once(lambda: tensor.to(device), "moved", tensor, device)


def _padding(call: LayerCall, rows: RowMap) -> Tensor | None:
    """Which rows of a recurrent layer are no padding, (samples, rows) bool; None if all are."""
    guards.refuse_recurrent_padding(call.index, rows.valid is not None, call.cache)
    mask = call.kwargs.get("attention_mask")
    if mask is None:
        return rows.valid
    real = rows.gather(mask[..., None])[..., 0] != 0  # gather takes (samples, columns, width)
    if rows.valid is None:
        return real
    return real & rows.valid


def _device_of(layer: nn.Module, hidden: Tensor) -> torch.device:
    """Where a layer computes: accelerate moves its input there inside the forward that is wrapped here.

    Offloaded weights come to where the input is.
    """
    weight = next(layer.parameters(), hidden)
    if weight.is_meta:
        return hidden.device
    return weight.device
