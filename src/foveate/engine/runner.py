"""Each layer: its stages cut, it runs on the rows that are left, and these are written back into the full stream."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import LinearAttentionLayer, attention_of, by_name, cache_of, unsupported
from foveate.core.signals import Signal
from foveate.core.tensors import Memo, on_tensors, send, without_gradient
from foveate.core.turns import Turn
from foveate.engine import guards
from foveate.engine.arguments import (
    Remap,
    Window,
    coming_in_window,
    number_on_cache,
    row_ids,
    scales_queries,
    tables_of,
    width_of,
    window_of,
)
from foveate.engine.cache import Coming, alive_columns, as_seen, find_pruned, pruned_layer, refuse_cache
from foveate.engine.cutting import cut_before, note_attending
from foveate.engine.forward import Arrival, Forward, LayerCall, Segment
from foveate.engine.handed import Original, Streams, with_hidden
from foveate.engine.program import Program
from foveate.engine.reading import Ahead, AttentionReader, is_causal, note_turns
from foveate.engine.reads import decode_hook
from foveate.engine.rows import BIAS, Rows
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.tap import PICKED, AttentionHook, every_slot, tapped_layer, unreadable

BY_NAME = {"attention_mask", "position_embeddings"}
"""Arguments that an ordinary layer gets by name."""
MISSING = object()
"""Stands for an argument that is not there, which is not None."""
REPLACED = ("attention_mask", "position_embeddings", "position_ids")
"""Arguments of a segment's layers that are replaced."""


class LayerRunner:
    """Wraps every decoder layer's forward.

    Attributes:
        arrival: The forward on its way to the decoder; None if there is none.
        forward: The forward in the decoder; None outside.
        wrappers: The function installed as each layer's forward.
        begin: Called before the first layer of a forward that has not begun, with its input and its other arguments.
    """

    def __init__(self, family: Family, program: Program, turn: Turn) -> None:
        self.arrival: Arrival | None = None
        self.forward: Forward | None = None
        self.begin: Callable[[Tensor, dict[str, Any]], Tensor] | None = None
        self.wrappers: list[Original] = []
        self._family = family
        self._program = program
        self._turn = turn
        self._devices: dict[int, torch.device] = {}  # of each layer, found in its last prefill
        self._layers = family.layers
        self._last = len(self._layers) - 1
        self._numbered_late = family.windows.keys() & program.cached if program.renumbers else set[int]()
        self._recurrent = family.recurrent
        self._lending = frozenset(family.lenders.values())
        self._plain: frozenset[int] = frozenset()  # layers that nothing reads and before which nothing cuts
        self._bare = not any("forward" in vars(layer) for layer in self._layers)  # then nothing moves their input
        if program.reading is None and self._bare and not family.lenders:
            others = program.busy | self._recurrent | family.indexed.keys() | self._numbered_late
            plain = set(range(1, len(self._layers))) - others
            self._plain = frozenset(layer for layer in plain if not scales_queries(family, layer))

    def run(self, index: int, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` the way of its forward."""
        guards.refuse_beside(self._turn)
        if not args and "hidden_states" in kwargs:
            args = (kwargs.pop("hidden_states"),)
        if self.arrival is not None and self.begin is not None and index == 0 and args:
            # The decoder's hook could not begin: its first layer does.
            args = (self.begin(args[0], by_name(self._layers[0], args, kwargs)), *args[1:])
        if self.arrival is not None:
            guards.refuse_lost_hooks(f"A hook before {type(self._family.text).__name__}")
        forward = self.forward
        if forward is None:  # outside the decoder
            return original(*args, **kwargs)
        way = self._run_told if forward.steps else self._run_cut
        return way(forward, index, original, args, kwargs)

    def _run_told(self, forward: Forward, index: int, original: Original, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a layer of a step. Its cache is told which columns come; without padding nothing else changes."""
        stored = forward.steps[index]
        if stored is None:
            return original(*args, **kwargs)
        as_is = kwargs.get("attention_mask", MISSING) is None and kwargs.get("position_embeddings") is not None
        as_is = as_is and stored.shift is None and not stored.ragged and not stored.beside
        if as_is and len(args) == 1 and cache_of(kwargs) is forward.cache:
            stored.announce(None, forward.span)
            return original(*args, **kwargs)
        segment = self._continued(forward, index, args, kwargs)
        if segment is not None and segment.holds(stored):
            stored.announce(*segment.announced)
            return original(*args, **{**kwargs, **segment.given})
        return self._run_alone(forward, index, original, args, kwargs)

    def _run_cut(self, forward: Forward, index: int, original: Original, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a layer on the rows that are left: as the layer before it if the model passes it the same."""
        segment = self._continued(forward, index, args, kwargs)
        if segment is not None and index == len(forward.outcome.ran):
            return self._run_further(forward, segment, index, original, args[0], kwargs)
        if forward.segment is not None and args:
            args = (forward.segment.put_back(index, args[0]), *args[1:])
        forward.segment = None
        return self._run_alone(forward, index, original, args, kwargs)

    def _continued(self, forward: Forward, index: int, args: Any, kwargs: dict[str, Any]) -> Segment | None:
        """Return the segment of the layers before this one if it is called like them, else None."""
        segment = forward.segment
        if segment is None or index not in self._plain or len(args) != 1 or cache_of(kwargs) is not forward.cache:
            return None
        # The very same mask and tables: a layer with a window, for example, gets another mask.
        mask, tables = kwargs.get("attention_mask", MISSING), kwargs.get("position_embeddings")
        if mask is not segment.mask or tables is not segment.tables or args[0].device != segment.device:
            return None
        return segment if type(self._layers[index]) is segment.kind else None

    def _run_alone(self, forward: Forward, index: int, original: Original, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a layer with arguments of its own, after the stages before it."""
        module, cache = self._layers[index], cache_of(kwargs)
        stored = find_pruned(cache, self._family.lenders.get(index, index))
        if not forward.drops and stored is None and not forward.ends_turn:
            return original(*args, **kwargs)
        if stored is not None and stored.reads is not None:
            stored = stored.reads
        if args[1:]:
            args, kwargs = args[:1], by_name(module, args, kwargs)
        expected = len(forward.outcome.ran) if forward.drops else index
        gathers = self._family.gathers
        if index != expected or not args or not (gathers or kwargs.keys() >= BY_NAME):
            guards.refuse_layer_call(index, expected, args, kwargs)
        (hidden,) = args
        streams: Streams | None = None
        if hidden.dim() == 4:
            streams = Streams.of(hidden, (forward.count, forward.span))
            hidden, original = streams.fold(hidden), streams.around(original)
        if forward.drops and index == 0:
            refuse_cache(cache)
            guards.refuse_first_layer(module, kwargs, hidden.shape[1], forward.caches, gathers)
            forward.cache = cache
        elif forward.drops and cache is not forward.cache:
            guards.refuse_other_cache()
        call = LayerCall(index, module, hidden, hidden, kwargs, stored, cache, streams)
        del hidden, args  # so that only the call holds the input
        run = self._run_borrower if index in self._family.lenders else self._run_call
        output = run(forward, call, original)
        return output if streams is None else with_hidden(output, streams.unfold)

    def _run_call(self, forward: Forward, call: LayerCall, original: Original) -> Any:
        """Run the stages before a layer, then the layer."""
        self._bring_together(forward, call)
        tables = call.kwargs.get("position_embeddings")
        number_on_cache(forward, call)
        if forward.drops:
            if call.index == 0 and self._program.turned:
                note_turns(forward, call)
            ahead = Ahead(forward, call)
            cut_before(forward, call, ahead.reader)
            ahead.memo = Memo()
        signals = self._program.signals_while(call.index) if forward.drops else ()
        # Built while the call's arguments are still those of all rows.
        notes = None if self._program.reading is None else decode_hook(forward, call)
        members = forward.table.members if signals else ()
        readers = [AttentionReader(forward, call, member, signals) for member in members]
        hidden, rows = call.hidden, forward.outcome.rows and forward.outcome.rows.on(call.hidden.device)
        self._hand_over(forward, call, rows, tables)
        if rows is not None:
            hidden = rows.gather(hidden)  # (samples, rows, width)
            call.hidden = call.entered  # free the copy with merged rows while the layer runs
        with _reading(call, signals, readers, notes) if signals or notes is not None else nullcontext():
            output = call.run(original, hidden)
        if rows is None:
            return output
        return self._hand_on(forward, call.index, rows, call.entered, output)

    def _hand_over(self, forward: Forward, call: LayerCall, rows: Rows | None, tables: Any) -> None:
        """Set a layer's arguments for running on rows (None: on all columns), and tell its cache their columns.

        Starts a segment if the next layers may get the same arguments. `tables` are those the model passed.
        """
        index, span, mask = call.index, call.hidden.shape[1], call.kwargs.get("attention_mask")
        recurrent, lends = index in self._recurrent, index in self._lending
        # Even for all columns: borrowers may see fewer of them, and a cut of the cache may bring some into a window.
        waits = forward.drops and index in self._numbered_late
        if call.cache is not None and not recurrent and (rows is not None or (forward.drops and lends) or waits):
            call.stored = pruned_layer(call.cache, index)
            call.stored.waits = waits
        stored, past = call.stored, call.past
        announced = Coming(None, span)
        if rows is not None:
            counted = coming_in_window(forward, rows, stored, past, call.hidden)
            beside = {BIAS: rows.at(BIAS)} if BIAS in rows.table else {}
            announced = Coming(rows.unpruned(past), span, rows.valid is not None, counted, rows.disorder, beside)
        elif stored is None:
            return
        if rows is not None and recurrent:
            call.kwargs["attention_mask"] = _padding(call, rows)
        else:
            call.kwargs["attention_mask"] = self._mask(forward, call, rows, announced)
        begins = bool(forward.steps) and index in self._plain
        if rows is not None:
            # The next layer gets the same if this one has no state, no argument of its own and no earlier turn. Caches
            # of earlier turns hold other columns in later layers, before which tokens were dropped.
            alone = self._give_rows(forward, call, rows) or recurrent or past
            later = () if call.cache is None else call.cache.layers[index + 1 :]
            is_new = not any(getattr(layer, "is_initialized", False) for layer in later)
            begins = index + 1 in self._plain and not alone and is_new
        if stored is not None:
            stored.lends = lends
            stored.announce(*announced)
            if rows is not None and rows.anew is not None:
                stored.shift = rows.shift(stored.shift, forward.entering_rows)
        if index in self._family.indexed:
            self._pick_all(forward, call, span if rows is None else rows.read.shape[1])
        if begins:
            arguments = {name: call.kwargs[name] for name in REPLACED if name in call.kwargs}
            kind, device = type(call.module), call.hidden.device
            forward.segment = Segment(rows, mask, tables, arguments, stored, announced, kind, device)

    def _pick_all(self, forward: Forward, call: LayerCall, rows: int) -> None:
        """Let a layer that picks keys by an index pick all keys, for `rows` rows. Refuse if it cannot."""
        slots, picked = rows + (0 if call.stored is None else call.stored.slots), self._family.indexed[call.index]
        # An index over the rows left would pick other keys than one over all rows.
        if slots > picked or forward.backend not in ("eager", "sdpa"):
            raise UnsupportedError(
                f"Layer {call.index} picks {picked} keys by an index, and {slots} keys are left: foveate can drop "
                f"tokens there only if all keys are picked, and with sdpa or eager attention; this is "
                f"{forward.backend}. Keep fewer tokens, or load the model with attn_implementation='sdpa'."
            )
        if PICKED in call.kwargs:
            call.kwargs[PICKED] = every_slot(rows, slots, call.hidden)

    def _run_borrower(self, forward: Forward, call: LayerCall, original: Original) -> Any:
        """Run a layer that attends to an earlier layer's keys, with queries of the rows that are left.

        If only the last row's logits are requested, the model passes that row alone.
        """
        self._bring_together(forward, call)
        lender, span, count = call.stored, forward.span, call.hidden.shape[1]
        rows = forward.outcome.rows and forward.outcome.rows.on(call.hidden.device)
        sliced = count < span
        if forward.drops:
            forward.outcome.ran.append(forward.outcome.rows)
        if rows is not None and sliced:
            end = span - count
            if any(int((sample.text >= end).sum()) < count for sample in forward.samples):
                raise UnsupportedError(
                    f"This model computes only the last {count} rows of its last layers, and some of them may be "
                    "dropped. Request logits of only the last row (as generate does) or of all rows, and put text "
                    "behind the picture."
                )
        past = 0 if lender is None else lender.seen - span
        held, alive = self._lent_slots(forward, call, rows, past)
        keys = held
        if held is not None and alive is not None:
            keys = as_seen(held, alive)
        mask, ragged = call.kwargs.get("attention_mask"), alive is not None or (lender is not None and lender.ragged)
        if held is not None and keys is not None and (mask is not None or ragged):
            queries = torch.arange(count, device=keys.device).expand(len(keys), -1)
            if sliced and mask is None:
                queries = queries + span - count
            elif rows is not None and not sliced:
                queries = rows.read
            window = None if mask is None else self._lent_window(forward, call, rows, held)
            remap = Remap(queries, keys, past, past + span, ragged, is_causal(call.module), window)
            call.kwargs["attention_mask"] = remap(mask, forward.backend)
        if rows is None or sliced:
            return call.run(original, call.hidden)
        self._give_rows(forward, call, rows)
        output = call.run(original, rows.gather(call.hidden))
        return self._hand_on(forward, call.index, rows, call.entered, output)

    def _lent_slots(
        self, forward: Forward, call: LayerCall, rows: Rows | None, past: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the columns of the slots that a layer's lender returned, (samples, slots), and which of them are seen.

        Either is None if it is all of them.
        """
        lender, span, device = call.stored, forward.span, call.hidden.device
        if lender is not None:
            if rows is not None:
                lender.alive = alive_columns(rows.unpruned(past), past, lender.alive, lender.seen)
            return lender.returned, lender.alive
        if rows is None:
            return None, None
        of_lender = forward.outcome.ran[self._family.lenders[call.index]]  # without a cache
        held = torch.arange(span, device=device).expand(len(rows.read), -1)
        if of_lender is not None:
            held = of_lender.on(device).unpruned(0)
        return held, alive_columns(rows.unpruned(0), 0, None, span)

    def _lent_window(self, forward: Forward, call: LayerCall, rows: Rows | None, held: Tensor) -> Window | None:
        """Return what a borrowing layer's window counts; see `window_of`. Such models do not renumber rows.

        `held` are the columns of the slots that its lender returned.
        """
        self._refuse_flash(forward, call)
        lender, reach, count = call.stored, self._family.windows.get(call.index), call.hidden.shape[1]
        total = forward.span if lender is None else lender.seen
        if reach is None or total <= reach.columns:
            return None
        past = total - forward.span
        of_lender = forward.outcome.ran[self._family.lenders[call.index]] if lender is None else None
        counted = None if lender is None else lender.returned_window
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

    def _give_rows(self, forward: Forward, call: LayerCall, rows: Rows) -> dict[str, Any]:
        """Reduce a layer's tables, ids and other per-column arguments to the rows.

        Returns:
            The reduced arguments that ordinary layers do not get, by name.
        """
        more = {}
        for name, value in call.more.items() if self._family.gathers else ():
            taken = rows.at_rows(value)
            if taken is not value:
                more[name] = _with_pads(name, taken, rows)
        if call.kwargs.get("position_embeddings") is not None:
            call.kwargs["position_embeddings"] = tables_of(forward, call, rows)
        if "position_ids" in call.kwargs:
            call.kwargs["position_ids"] = row_ids(forward, call, rows)
        call.kwargs.update(more)
        return more

    def _run_further(
        self, forward: Forward, segment: Segment, index: int, original: Original, hidden: Tensor, kwargs: dict[str, Any]
    ) -> Any:
        """Run a layer of a segment that is not its first."""
        rows, entered = segment.rows, hidden
        assert rows is not None
        if segment.handed is None:
            hidden = rows.gather(entered)  # (samples, rows, width)
        elif hidden is segment.handed:
            entered = segment.full
        else:
            guards.refuse_changed_rows(index)
        if segment.stored is not None:
            stored = pruned_layer(forward.cache, index)
            stored.announce(*segment.announced)
            stored.shift = segment.stored.shift
        forward.outcome.ran.append(rows)
        output = original(hidden, **{**kwargs, **segment.given})
        return self._hand_on(forward, index, rows, entered, output)

    def _hand_on(self, forward: Forward, index: int, rows: Rows, entered: Tensor, output: Any) -> Any:
        """Return the output of a layer that ran on rows: the full-length stream, or rows if the next layer takes them.

        Args:
            forward: The forward.
            index: Index of the layer.
            rows: Its rows.
            entered: The full-length stream that the rows came from.
            output: The layer's output for the rows.
        """
        of_rows, segment = output[0] if isinstance(output, tuple) else output, forward.segment
        if segment is not None and forward.hands_on and index < self._last:
            segment.full, segment.handed = entered, of_rows
            return output
        full = rows.scatter(entered, of_rows)  # (samples, columns, width)
        if of_rows.shape[1] and index == self._last:
            # Copy the last row left at or before an image's last column to that column. The next token is predicted
            # from it, but its own token may have been dropped.
            if forward.image_ends is not None:
                samples, columns = (send(places, full.device) for places in forward.image_ends)
                full = full.index_put((samples, columns), full[samples, rows.last_rows(samples, columns)])
            elif forward.ends_in_vision:  # only the last column will be read
                full = torch.cat((full[:, :-1], of_rows[:, -1:]), dim=1)
        if segment is not None:  # free the tensors after the last layer
            segment.full = segment.handed = None
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def hands_on(self, forward: Forward, kwargs: dict[str, Any]) -> bool:
        """Return whether layers may pass rows on to one another, so that rows are written back only once.

        This requires that nothing reads between the layers: no other hook or wrapper, no requested hidden states,
        nothing that the decoder adds, no gradient. The decoder's loop over the layers must be a known one.

        Args:
            forward: The forward.
            kwargs: The arguments of the decoder's forward.
        """
        text, layers = self._family.text, self._layers
        is_known = self._family.is_usual and type(text).__module__.startswith("transformers.")
        asked = kwargs.get("output_hidden_states") or getattr(text.config, "output_hidden_states", False)
        if not (self._plain and is_known) or asked or forward.additions is not None or torch.is_grad_enabled():
            return False
        if torch.nn.modules.module._has_any_global_hook() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
            return False
        hooked = [layer for layer in layers if layer._forward_hooks or layer._forward_pre_hooks]
        own = [vars(layer).get("forward") is put for layer, put in zip(layers, self.wrappers, strict=True)]
        return not hooked and all(own)

    # -- devices -----------------------------------------------------------------------------------------------

    def _bring_together(self, forward: Forward, call: LayerCall) -> None:
        """Move input, tables and mask to the device on which the layer computes."""
        hidden, kwargs = call.hidden, call.kwargs
        tables = kwargs.get("position_embeddings")
        if self._bare and tables is not None and tables[0].device == hidden.device:
            return
        if forward.drops or call.index not in self._devices:
            # accelerate moves the input to the weights inside the forward wrapped here. Offloaded weights come to the
            # input's device.
            weight = next(call.module.parameters(), hidden)
            self._devices[call.index] = hidden.device if weight.is_meta else weight.device
        device = self._devices[call.index]
        if hidden.device != device or (tables is not None and tables[0].device != device):
            call.entered = call.hidden = hidden.to(device)
            kwargs["position_embeddings"] = on_tensors(tables, lambda table: _here(forward, table, device))
        kwargs["attention_mask"] = _here(forward, kwargs.get("attention_mask"), device)

    # -- masks -------------------------------------------------------------------------------------------------

    def _mask(self, forward: Forward, call: LayerCall, rows: Rows | None, coming: Coming) -> Any:
        """Return the layer's mask, built once for all layers whose rows and slots stand for the same columns.

        Args:
            forward: The forward.
            call: The layer's call.
            rows: The rows it runs on; None: all columns.
            coming: What its cache is told of these.
        """
        self._refuse_flash(forward, call)
        mask, stored, hidden, columns = call.kwargs.get("attention_mask"), call.stored, call.hidden, coming.columns
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
        samples, span, device = hidden.shape[0], hidden.shape[1], hidden.device
        window = None if mask is None else window_of(forward, call.index, rows, stored, call.past, hidden)

        def make_mask() -> Any:
            if rows is None:
                queries = torch.arange(span, device=device).expand(samples, -1)
            else:
                queries = rows.read
            keys = columns  # if there is a cache, replaced by its slots followed by these
            if stored is not None:
                keys = stored.columns(span if columns is None else columns, samples, device)
            assert keys is not None
            if mask is not None and (stored is None or stored.window is None) and width_of(mask) != call.past + span:
                raise unsupported(f"makes masks of {width_of(mask)} columns where the sequence has {call.past + span}")
            remap = Remap(queries, keys, call.past, call.past + span, ragged, is_causal(call.module), window)
            remapped = remap(mask, forward.backend)
            return remapped if bias is None else remap.with_bias(remapped, bias, hidden.dtype)

        if stored is None:
            return forward.memo.once(make_mask, "mask", mask, rows, None, 0, bias)
        # The cache slots read in a step are all visible to it, so the mask depends only on their padding. What a
        # window counts depends on them all.
        slots = stored.held or stored.base if window is None else window.keys
        return forward.memo.once(make_mask, "mask", mask, rows, slots, stored.base_end, bias)

    def _refuse_flash(self, forward: Forward, call: LayerCall) -> None:
        """Refuse flash attention in a layer with a window, which it counts in stored tokens, not in columns."""
        if "flash" in forward.backend and call.index in self._family.windows:
            raise UnsupportedError(
                f"Layer {call.index} has a sliding window, and flash attention counts it in stored tokens: after "
                "dropping, the window would reach too far. Load the model with attn_implementation='sdpa'."
            )


@contextmanager
def _reading(
    call: LayerCall,
    signals: Sequence[Signal],
    readers: list[AttentionReader],
    notes: AttentionHook | None,
) -> Iterator[None]:
    """Compute signals from a layer's queries and keys while it attends, for stages before the next layer.

    Args:
        call: The layer's call.
        signals: The signals to compute.
        readers: The samples with their readers.
        notes: Notes what a decode stage reads.
    """
    attended, weights = False, call.module.parameters()
    trains = torch.is_grad_enabled() and (call.hidden.requires_grad or any(weight.requires_grad for weight in weights))

    def attends(queries: Tensor, keys: Tensor, scaling: float, values: Tensor) -> None:
        nonlocal attended
        attended = True
        if notes is not None:
            notes(queries, keys, scaling, values)
        if trains and not torch.is_grad_enabled():
            queries, keys, values = map(without_gradient, (queries, keys, values))
        for reader in readers:
            reader.attended = queries, keys, scaling, values
        if not trains:
            note()

    def note() -> None:
        for reader in readers:
            note_attending(reader, signals, call.index)
        readers.clear()  # free queries and keys before the MLP runs

    with tapped_layer(call.module, attends):
        yield
    if not attended:
        raise unreadable(attention_of(call.module))
    note()  # a checkpointed layer runs again in the backward pass, and must do then what it did before


def _with_pads(name: str, value: Any, rows: Rows) -> Any:
    """Return an argument of some rows. In a mask of them, (samples, rows), pads are hidden too."""
    if "mask" not in name or not isinstance(value, Tensor) or value.dim() != 2 or rows.valid is None:
        return value
    return value * rows.valid.to(value.dtype)


def _here(forward: Forward, tensor: Any, device: torch.device) -> Any:
    """Return a table or mask on the layer's device. It is moved once for all layers there."""
    if not isinstance(tensor, Tensor) or tensor.device == device:
        return tensor
    return forward.memo.once(lambda: tensor.to(device), "moved", tensor, device)


def _padding(call: LayerCall, rows: Rows) -> Tensor | None:
    """Return which rows of a recurrent layer are not padding, (samples, rows) bool; None without padding."""
    cache, index = call.cache, call.index
    # Padding between a state and the rows that continue from it would make the state decay.
    goes_on = rows.valid is not None and cache is not None and isinstance(cache.layers[index], LinearAttentionLayer)
    if goes_on and cache.has_previous_state(index):
        raise UnsupportedError(
            f"Layer {index} continues from the state of an earlier call, and the samples of this batch keep different "
            "numbers of tokens, so padding would change the state. Continue with one sample at a time."
        )
    mask = call.kwargs.get("attention_mask")
    if mask is None:
        return rows.valid
    real = rows.gather(mask[..., None])[..., 0] != 0  # gather takes (samples, columns, width)
    if rows.valid is None:
        return real
    return real & rows.valid
