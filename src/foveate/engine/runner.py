"""Each layer: first its stages cut, then it runs on the rows that are left, and these go back into the full stream."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import CACHE_NAMES, by_name, cache_of
from foveate.core.signals import Signal
from foveate.core.tensors import on_tensors, send
from foveate.engine import guards
from foveate.engine.arguments import Positions, Remap, width_of
from foveate.engine.buckets import Bucket
from foveate.engine.cache import CACHE_LAYERS, alive_columns, as_seen, find_pruned, pruned_layer
from foveate.engine.cutting import cut_before, note_attending
from foveate.engine.forward import Alike, Forward, LayerCall, RowMap, Stepped
from foveate.engine.handed import Original, Streams, with_hidden
from foveate.engine.program import Program
from foveate.engine.reading import AttentionReader, OwnAttention, is_causal
from foveate.engine.reads import decode_hook
from foveate.engine.turning import note_turns
from foveate.families.base import Family
from foveate.families.tap import PICKED, AttentionHook, attention_of, every_slot, tapped_layer, unreadable

Tap = AbstractContextManager[None]
"""Reads a layer's own attention while the layer runs, if a stage asks for it."""


BY_NAME = {"attention_mask", "position_embeddings"}
"""What a layer of the usual kind is handed by name."""


class LayerRunner:
    """Stands around every decoder layer's forward.

    Attributes:
        forward: The forward on its way; None outside.
        wrappers: What was put in the place of each layer's forward.
        begin: Called before the first layer of a forward that has not begun, with its input and its other arguments.
    """

    def __init__(self, family: Family, program: Program) -> None:
        self.forward: Forward | None = None
        self.begin: Callable[[Tensor, dict[str, Any]], Tensor] | None = None
        self.wrappers: list[Original] = []
        self._family = family
        self._program = program
        self._positions = Positions(family, program.renumbers)
        self._devices: dict[int, torch.device] = {}  # of each layer, as its last prefill found it
        self._layers = family.layers
        self._last = len(self._layers) - 1
        self._recurrent = family.recurrent
        self._indexed = family.indexed
        self._lenders = family.lenders
        self._lending = frozenset(self._lenders.values())
        self._plain: frozenset[int] = frozenset()  # layers whose rows nothing reads or cuts
        self._bare = not any(["forward" in vars(layer) for layer in self._layers])  # then nobody moves their input
        if program.reading is None and self._bare and not self._lenders:
            others = program.busy | self._recurrent | self._positions.scaling | self._indexed.keys()
            self._plain = frozenset(range(1, len(self._layers))) - others

    def run(self, index: int, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left, and put them back into the full-length stream."""
        forward = self.forward
        if index == 0 and forward is not None and not forward.begun and self.begin is not None:
            if args:
                args = (self.begin(args[0], by_name(self._layers[0], args, kwargs)), *args[1:])
            elif "hidden_states" in kwargs:
                kwargs["hidden_states"] = self.begin(kwargs["hidden_states"], kwargs)
        if forward is None or forward.idle:  # outside the decoder's forward, or nothing to do
            return original(*args, **kwargs)
        if not forward.begun:
            guards.refuse_lost_hooks(f"A hook before {type(self._family.text).__name__}")
        mask, tables = kwargs.get("attention_mask", args), kwargs.get("position_embeddings")
        if forward.steps and len(args) == 1 and tables is not None and forward.cache in map(kwargs.get, CACHE_NAMES):
            layer, stepped = forward.steps[index], forward.stepped
            if layer is None or (mask is layer.shift is None and not layer.ragged):
                given: dict[str, Any] | None = {}
            elif stepped is not None and index in self._plain:
                given = stepped.given_to(layer, mask, tables, type(self._layers[index]))
            else:
                given = None
            if given is not None:
                if layer is not None:
                    layer._announced = None, forward.span, False
                return original(*args, **{**kwargs, **given})
        if forward.alike is not None:
            alike, held = forward.alike, forward.cache
            in_turn = index in self._plain and index == len(forward.row_maps)
            same = mask is alike.mask and tables is alike.tables and type(self._layers[index]) is alike.kind
            same &= cache_of(kwargs) is None if held is None else held in map(kwargs.get, CACHE_NAMES)
            if in_turn and same and len(args) == 1 and args[0].device == alike.device:
                return self._run_alike(forward, alike, index, original, args[0], kwargs)
            forward.alike = None
            args, kwargs = alike.put_back(index, args, kwargs)
        cache = cache_of(kwargs)
        stored = find_pruned(cache, self._lenders.get(index, index))
        if not forward.drops and stored is None and not forward.ends_turn:
            return original(*args, **kwargs)
        if stored is not None and stored.reads is not None:
            stored = stored.reads
        expected = index
        if forward.drops:
            expected = len(forward.row_maps)
        module = self._layers[index]
        if args[1:]:
            args, kwargs = args[:1], by_name(module, args, kwargs)
        usual = self._family.gathers or kwargs.keys() >= BY_NAME
        if index != expected or not usual or not (args or "hidden_states" in kwargs):
            guards.refuse_layer_call(index, expected, args, kwargs)
        hidden = args[0] if args else kwargs["hidden_states"]
        streams: Streams | None = None
        if hidden.dim() == 4:
            streams = Streams.of(hidden, (forward.count, forward.span))
            hidden, original = streams.fold(hidden), streams.around(original)
        if forward.drops and index == 0:
            gathers = self._family.gathers
            guards.refuse_first_layer(module, kwargs, hidden.shape[1], forward.caches, CACHE_LAYERS, gathers)
            forward.cache = cache
        elif forward.drops and cache is not forward.cache:
            guards.refuse_other_cache(index)
        call = LayerCall(index, module, hidden, hidden, kwargs, not args, stored, cache, streams)
        del hidden, args  # so that the call alone holds the input
        if index in self._lenders:
            run = self._run_borrower
        else:
            run = self._run_call
        output = run(forward, call, original)
        if streams is None:
            return output
        return with_hidden(output, streams.unfold)

    def _run_call(self, forward: Forward, call: LayerCall, original: Original) -> Any:
        """Run a layer whose call is known: first its stages cut."""
        self._bring_together(forward, call)
        tables = call.kwargs.get("position_embeddings")
        self._positions.move_up(forward, call)
        reader_of = functools.partial(AttentionReader, forward, call, self._family, self._positions)
        if forward.drops:
            if call.index == 0 and self._program.turned:
                note_turns(forward, self._program.turned, call, self._family)
            cut_before(forward, self._program, call, reader_of, self._family.final_norm)
        tap = self._attention_tap(forward, call, reader_of)
        if forward.rows is None:
            return self._run_whole(forward, call, original, tap, tables)
        return self._run_rows(forward, call, original, tap)

    def _run_whole(
        self, forward: Forward, call: LayerCall, original: Original, tap: AbstractContextManager[None], tables: Any
    ) -> Any:
        """Run a layer on all columns; in its cache some may be missing. It was handed these tables."""
        if forward.drops and call.cache is not None and call.index in self._lending:
            call.stored = pruned_layer(call.cache, call.index)  # borrowers may see less of it
            call.stored.lends = True
        if call.stored is not None:
            mask = call.kwargs.get("attention_mask")
            call.kwargs["attention_mask"] = self._mask(forward, call)
            call.stored.announce(None, call.hidden.shape[1])
            if call.index in self._indexed:
                self._pick_all(forward, call, call.hidden.shape[1])
            if forward.steps and call.index in self._plain:
                given = {name: value for name, value in call.kwargs.items() if name in BY_NAME}
                forward.stepped = Stepped(call.stored, mask, tables, given, type(call.module))
        with tap:
            return call.run(original, call.hidden)

    def _run_rows(
        self, forward: Forward, call: LayerCall, original: Original, tap: AbstractContextManager[None]
    ) -> Any:
        """Run a layer on the rows that are left."""
        assert forward.rows is not None
        rows = forward.rows.on(call.hidden.device)
        recurrent = call.index in self._recurrent
        if call.cache is not None and not recurrent:
            call.stored = pruned_layer(call.cache, call.index)
        past = call.past
        columns = rows.unpruned(past)
        mask, tables = call.kwargs.get("attention_mask"), call.kwargs.get("position_embeddings")
        if recurrent:
            call.kwargs["attention_mask"] = _padding(call, rows)
        else:
            call.kwargs["attention_mask"] = self._mask(forward, call, rows, columns)
        more = self._give_rows(forward, call, rows)
        if call.stored is not None:
            call.stored.lends = call.index in self._lending
            call.stored.announce(columns, call.hidden.shape[1], ragged=rows.valid is not None)
            if rows.numbered is not None:
                call.stored.shift = rows.shift(call.stored.shift, forward.entering_rows)
        if call.index in self._indexed:
            self._pick_all(forward, call, rows.columns.shape[1])
        gathered = rows.gather(call.hidden)  # (samples, rows, width)
        call.hidden = call.entered  # frees the copy with merged rows while the layer runs
        with tap:
            output = call.run(original, gathered)
        alone = call.index + 1 in self._plain and not recurrent and not more
        if past == 0 and alone and _is_new(call.cache, call.index):
            names = ("attention_mask", "position_embeddings", "position_ids")
            given = {name: call.kwargs[name] for name in names if name in call.kwargs}
            announced = columns, call.hidden.shape[1], rows.valid is not None
            shift = None if call.stored is None else call.stored.shift
            forward.alike = Alike(mask, tables, given, rows, announced, shift, type(call.module), gathered.device)
        return self._hand_on(forward, forward.alike, call.index, rows, call.entered, output)

    def _pick_all(self, forward: Forward, call: LayerCall, rows: int) -> None:
        """Let rows of a layer that picks keys by an index pick all that there are, so many rows among them."""
        slots = rows + (0 if call.stored is None else call.stored.slots)
        guards.refuse_picking(call.index, slots, self._indexed[call.index], forward.backend)
        if PICKED in call.kwargs:
            call.kwargs[PICKED] = every_slot(rows, slots, call.hidden)

    def _run_borrower(self, forward: Forward, call: LayerCall, original: Original) -> Any:
        """Run a layer that attends to what an earlier one has made: its queries are of the rows that are left.

        Where only the last row's logits are asked for, the model hands it that row alone.
        """
        self._bring_together(forward, call)
        lender, span, count = call.stored, forward.span, call.hidden.shape[1]
        rows = None
        if forward.rows is not None:
            rows = forward.rows.on(call.hidden.device)
        sliced = count < span
        if forward.drops:
            forward.row_maps.append(forward.rows)
        if rows is not None and sliced:
            guards.refuse_sliced_rows(count, [sample.text for sample in forward.samples], span)
        past = 0 if lender is None else lender.seen - span
        held, alive = self._lent(forward, call, rows, past)
        keys = held
        if held is not None and alive is not None:
            keys = as_seen(held, alive)
        mask, ragged = call.kwargs.get("attention_mask"), alive is not None or (lender is not None and lender.ragged)
        if keys is not None and (mask is not None or ragged):
            queries = torch.arange(count, device=keys.device).expand(len(keys), -1)
            if sliced and mask is None:
                queries = queries + span - count
            elif rows is not None and not sliced:
                queries = rows.columns
            remap = Remap(queries, keys, past, past + span, ragged, is_causal(call.module))
            call.kwargs["attention_mask"] = remap(mask, forward.backend)
        if rows is None or sliced:
            return call.run(original, call.hidden)
        self._give_rows(forward, call, rows)
        output = call.run(original, rows.gather(call.hidden))
        return self._hand_on(forward, None, call.index, rows, call.entered, output)

    def _lent(
        self, forward: Forward, call: LayerCall, rows: RowMap | None, past: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Columns of the slots that a layer's lender has handed out, (samples, slots), and which columns are seen; None
        of either where all are there."""
        lender, span, device = call.stored, forward.span, call.hidden.device
        if lender is not None:
            if rows is not None:
                lender.alive = alive_columns(rows.unpruned(past), past, lender.alive, lender.seen)
            return lender.returned, lender.alive
        if rows is None:
            return None, None
        of_lender = forward.row_maps[self._lenders[call.index]]  # without a cache
        held = torch.arange(span, device=device).expand(len(rows.columns), -1)
        if of_lender is not None:
            held = of_lender.on(device).unpruned(0)
        return held, alive_columns(rows.unpruned(0), 0, None, span)

    def _give_rows(self, forward: Forward, call: LayerCall, rows: RowMap) -> dict[str, Any]:
        """Hand a layer tables, ids and whatever has a value for every column, of the rows.

        Returns:
            Of these what layers of the usual kind do not get, by name.
        """
        more = {}
        for name, value in call.more.items() if self._family.gathers else ():
            taken = rows.take(value)
            if taken is not value:
                more[name] = _with_pads(name, taken, rows)
        if call.kwargs.get("position_embeddings") is not None:
            call.kwargs["position_embeddings"] = self._positions.tables(forward, call, rows)
        if "position_ids" in call.kwargs:
            call.kwargs["position_ids"] = self._positions.ids(forward, call, rows)
        call.kwargs.update(more)
        return more

    def _run_alike(
        self, forward: Forward, alike: Alike, index: int, original: Original, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Any:
        """Run a layer on the rows that the one before it ran on, with the same arguments."""
        rows, entered = alike.rows, hidden
        if alike.handed is None:
            hidden = rows.gather(entered)  # (samples, rows, width)
        elif hidden is alike.handed:
            entered = alike.full
        else:
            guards.refuse_changed_rows(index)
        if forward.cache is not None:
            stored = pruned_layer(forward.cache, index)
            stored._announced, stored.shift = alike.announced, alike.shift
        forward.row_maps.append(rows)
        output = original(hidden, **{**kwargs, **alike.given})
        if forward.hands_on and index < self._last:
            alike.full, alike.handed = entered, output[0] if isinstance(output, tuple) else output
            return output
        return self._hand_on(forward, alike, index, rows, entered, output)

    def _hand_on(
        self, forward: Forward, alike: Alike | None, index: int, rows: RowMap, entered: Tensor, output: Any
    ) -> Any:
        """What a layer that ran on rows answers: the full-length stream, or the rows alone where the next takes them.

        Args:
            forward: The forward.
            alike: What the next layer may have in common with this one.
            index: The layer's.
            rows: Its rows.
            entered: The full-length stream that they came from.
            output: What it made of them.
        """
        made = output[0] if isinstance(output, tuple) else output
        if alike is not None and forward.hands_on and index < self._last:
            alike.full, alike.handed = entered, made
            return output
        full = self._put_back(forward, index, rows, entered, made)
        if alike is not None:  # nothing lives on behind the last layer
            alike.full = alike.handed = None
        if isinstance(output, tuple):
            return (full, *output[1:])
        return full

    def hands_on(self, forward: Forward, kwargs: dict[str, Any]) -> bool:
        """Whether layers may hand rows on to one another, so that these go back into the full-length stream once.

        Nobody may read between the layers: no hook or wrapper of others, no hidden states that are asked for, nothing
        that the decoder adds, no gradient. Decoders whose loop over the layers is not known go without.

        Args:
            forward: The forward.
            kwargs: The arguments of the decoder's forward.
        """
        text, layers = self._family.text, self._layers
        known = self._family.is_usual and type(text).__module__.startswith("transformers.")
        asked = kwargs.get("output_hidden_states") or getattr(text.config, "output_hidden_states", False)
        if not (self._plain and known) or asked or forward.additions is not None or torch.is_grad_enabled():
            return False
        if torch.nn.modules.module._has_any_global_hook() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
            return False
        hooked = [layer for layer in layers if layer._forward_hooks or layer._forward_pre_hooks]
        own = [vars(layer).get("forward") is put for layer, put in zip(layers, self.wrappers, strict=True)]
        return not hooked and all(own)

    def _put_back(self, forward: Forward, index: int, rows: RowMap, entered: Tensor, output: Tensor) -> Tensor:
        """The full-length stream with a layer's rows in it.

        Behind the last layer, an image's last column gets the last row that is left at or before it: the next token is
        predicted from this column, whose own token may have been dropped.
        """
        full = rows.scatter(entered, output)  # (samples, columns, width)
        if not output.shape[1] or index < self._last:
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
        tables = kwargs.get("position_embeddings")
        if self._bare and tables is not None and tables[0].device == hidden.device:
            return
        if forward.drops or call.index not in self._devices:
            self._devices[call.index] = _device_of(call.module, hidden)
        device = self._devices[call.index]
        if hidden.device != device or (tables is not None and tables[0].device != device):
            call.entered = call.hidden = hidden.to(device)
            kwargs["position_embeddings"] = on_tensors(tables, lambda table: _here(forward, table, device))
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
            if rows is None:
                queries = torch.arange(span, device=device).expand(samples, -1)
            else:
                queries = rows.columns
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
        notes = None
        if self._program.reading is not None:
            notes = decode_hook(forward, call, self._program, self._family)
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
    notes: AttentionHook | None,
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

    def attends(queries: Tensor, keys: Tensor, scaling: float, values: Tensor) -> None:
        nonlocal attended
        attended = True
        if notes is not None:
            notes(queries, keys, scaling, values)
        own_attention.append((queries, keys, scaling, values))
        for bucket, reader in readers:
            note_attending(bucket, signals, call.index, reader)
        own_attention.clear()
        readers.clear()  # frees queries and keys before the MLP runs

    with tapped_layer(call.module, attends):
        yield
    if not attended:
        raise unreadable(attention_of(call.module))


def _with_pads(name: str, value: Any, rows: RowMap) -> Any:
    """An argument of some rows; where it is a mask of them, (samples, rows), pads are hidden too."""
    if "mask" not in name or not isinstance(value, Tensor) or value.dim() != 2 or rows.valid is None:
        return value
    return value * rows.valid.to(value.dtype)


def _is_new(cache: Any, index: int) -> bool:
    """Whether layers of a cache behind this one hold nothing yet."""
    return cache is None or not any([getattr(layer, "is_initialized", False) for layer in cache.layers[index + 1 :]])


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
