"""Each layer: its stages cut, it runs on the rows that are left, and these are written back into the full stream."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import attention_of, by_name, cache_of
from foveate.core.signals import Signal
from foveate.core.tensors import Memo, on_tensors, send, without_gradient
from foveate.core.turns import Turn
from foveate.engine import guards
from foveate.engine.arguments import MISSING, own_arguments, positions_of, scales_queries, tables_moved_up
from foveate.engine.cache import PrunedLayer, find_pruned, pruned_layer, refuse_cache
from foveate.engine.cutting import cut_before, note_attending
from foveate.engine.forward import Arrival, Forward, LayerCall, PassedOn
from foveate.engine.program import Program
from foveate.engine.reading import Ahead, AttentionReader, note_turns
from foveate.engine.rows import Rows
from foveate.engine.streams import Original, Streams, with_hidden
from foveate.families.base import Family
from foveate.families.tap import tapped_layer, unreadable

BY_NAME = {"attention_mask", "position_embeddings"}
"""Arguments that an ordinary layer gets by name."""


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
        self._layers = list(family.layers)  # as they are now: a hook may reorder the model's own list
        self._last = len(self._layers) - 1
        self._storeless = family.recurrent | family.lenders.keys()  # layers that store no rows
        self._picks = bool(family.indexed)
        self._bare = not any("forward" in vars(layer) for layer in self._layers)  # then nothing moves their input

    @cached_property
    def _kinds(self) -> list[int]:
        """The first layer that each layer is like. Found when the first layer runs: contexts open faster."""
        kinds = [self._kind(index, layer) for index, layer in enumerate(self._layers)]
        return [kinds.index(kind) for kind in kinds]

    def _kind(self, index: int, layer: nn.Module) -> Hashable:
        """Return what layers must have in common to get the same arguments, if they are called alike."""
        family = self._family
        if index in self._storeless or index in family.indexed or index in family.lenders.values():
            return index
        rotary = family.rotary_type(index) if hasattr(family.text, "rotary_emb") else None
        return type(layer), rotary, family.windows.get(index), scales_queries(family, index)

    def run(self, index: int, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left."""
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
        stored = find_pruned(cache_of(kwargs), index)
        if not forward.drops and not forward.extensions.watch_all:
            if stored is None:
                return original(*args, **kwargs)
            if self._needs_tables_only(index, stored, kwargs):
                stored.announce(None, forward.span)
                shift = stored.shift
                if shift is not None:
                    kwargs["position_embeddings"] = tables_moved_up(forward, index, args[0], shift)
                return original(*args, **kwargs)
        call = self._call(forward, index, args, kwargs)
        if call.streams is None:
            return self._run(forward, call, original)
        return with_hidden(self._run(forward, call, call.streams.around(original)), call.streams.unfold)

    @contextmanager
    def running(self, forward: Forward) -> Iterator[None]:
        """Let another forward be the one in the decoder."""
        before, self.forward = self.forward, forward
        try:
            yield
        finally:
            self.forward = before

    def _needs_tables_only(self, index: int, stored: PrunedLayer, kwargs: dict[str, Any]) -> bool:
        """Return whether what the model passes in a step is right for a layer whose tokens were dropped.

        If the layer's positions have shrunk, all but the tables must be right.
        """
        odd = self._picks or stored.ragged or stored.beside or stored.window is not None
        # Without padding, a step sees all slots, and their keys have the positions that they came with.
        as_is = kwargs.get("attention_mask", MISSING) is None and kwargs.get("position_embeddings") is not None
        return as_is and not odd and (stored.shift is None or index in self._moved_by_tables)

    @cached_property
    def _moved_by_tables(self) -> set[int]:
        """Layers that read positions from (cos, sin) alone, and whose input nothing moves to another device."""
        layers = range(len(self._layers)) if self._bare else ()
        return {index for index in layers if not scales_queries(self._family, index)}

    def _call(self, forward: Forward, index: int, args: Any, kwargs: dict[str, Any]) -> LayerCall:
        """Return a layer's call. Refuse one that is out of order, or has unknown arguments or another cache."""
        module = self._layers[index]
        if args[1:]:
            args, kwargs = args[:1], by_name(module, args, kwargs)
        expected = len(forward.outcome.ran) if forward.drops else index
        gathers, cache = self._family.gathers, cache_of(kwargs)
        if index != expected or not args or not (gathers or kwargs.keys() >= BY_NAME):
            guards.refuse_layer_call(index, expected, args, kwargs)
        (hidden,) = args
        streams: Streams | None = None
        if hidden.dim() == 4:
            streams = Streams.of(hidden, (forward.count, forward.span))
            hidden = streams.fold(hidden)
        passed_on, forward.passed_on = forward.passed_on, None
        if passed_on is not None and passed_on.output is not hidden:
            guards.refuse_changed_rows(index)
        if forward.drops and index == 0:
            refuse_cache(cache)
            guards.refuse_first_layer(module, kwargs, hidden.shape[1], forward.caches, gathers)
            forward.cache = cache
        elif forward.drops and cache is not forward.cache:
            guards.refuse_other_cache()
        hidden, kwargs = self._bring_together(forward, index, hidden, kwargs)
        stored = find_pruned(cache, index)
        stored = stored and stored.attended
        samples, span = hidden.shape[:2] if passed_on is None else (forward.count, forward.span)
        kind = self._kinds[index]
        return LayerCall(index, module, hidden, kwargs, stored, cache, kind, samples, span, passed_on, streams)

    def _run(self, forward: Forward, call: LayerCall, original: Original) -> Any:
        """Run the stages before a layer, then the layer."""
        for before_layer in forward.extensions.before_layer:
            before_layer(forward, call)
        if forward.drops:
            if call.index == 0 and self._program.turned:
                note_turns(forward, call)
            if call.index in self._program.busy or call.index == 0:
                with _readers(forward, call) as reader_of:
                    cut_before(forward, call, reader_of)
            forward.outcome.ran.append(forward.outcome.rows)
        rows = forward.outcome.rows and forward.outcome.rows.on(call.device)
        for rows_for in forward.extensions.rows_for:
            rows = rows_for(forward, call, rows)
        signals = self._program.signals_while(call.index) if forward.drops else ()
        members = forward.table.members if signals else ()
        readers = [AttentionReader(forward, call, member, signals) for member in members]
        arguments = self._announce(forward, call, rows)
        hidden = call.hidden if rows is None else call.rows(rows)
        with _reading(call, signals, readers) if signals else nullcontext():
            if forward.extensions.around_layer:
                original = partial(self._inside, forward, call, original)
            output = original(hidden, **{**call.kwargs, **arguments})
        for after_store in forward.extensions.after_store:
            after_store(forward, call)
        return output if rows is None else self._written_back(forward, call, rows, output)

    def _inside(self, forward: Forward, call: LayerCall, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run a layer inside the contexts of extensions."""
        with forward.extensions.around(forward, call):
            return original(*args, **kwargs)

    def _announce(self, forward: Forward, call: LayerCall, rows: Rows | None) -> dict[str, Any]:
        """Tell a layer's cache which rows come. Returns the arguments that replace the model's."""
        if call.cache is not None and rows is not None and call.index not in self._storeless:
            call.stored = pruned_layer(call.cache, call.index)
        if rows is None and call.stored is None:
            return positions_of(forward, call, None) if forward.extensions.arguments else {}
        own = own_arguments(forward, call, rows)
        if call.stored is not None:
            call.stored.announce(*own.coming)
        return own.by_name

    def _written_back(self, forward: Forward, call: LayerCall, rows: Rows, output: Any) -> Any:
        """Return the output of a layer that ran on rows as the full-length stream, or as it is if rows are passed on.

        Whoever reads the stream in between has them written back: see `LayerCall.entered`.
        """
        of_rows = output[0] if isinstance(output, tuple) else output
        full = call.full(rows)
        if forward.passes_rows and call.index < self._last:
            forward.passed_on = PassedOn(rows, of_rows, full)
            return output
        full = rows.scatter(full, of_rows)  # (samples, columns, width)
        if of_rows.shape[1] and call.index == self._last:
            # Copy the last row left at or before an image's last column to that column. The next token is predicted
            # from it, but its own token may have been dropped.
            if forward.image_ends is not None:
                samples, columns = (send(places, full.device) for places in forward.image_ends)
                full = full.index_put((samples, columns), full[samples, rows.last_rows(samples, columns)])
            elif forward.ends_in_vision:  # only the last column will be read
                full = torch.cat((full[:, :-1], of_rows[:, -1:]), dim=1)
        return (full, *output[1:]) if isinstance(output, tuple) else full

    def passes_rows(self, forward: Forward, kwargs: dict[str, Any]) -> bool:
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
        reads = self._program.reading is not None or self._family.lenders
        if reads or not (self._bare and is_known) or asked or forward.additions is not None or torch.is_grad_enabled():
            return False
        if torch.nn.modules.module._has_any_global_hook() or torch.compiler.is_compiling():  # type: ignore[no-untyped-call]
            return False
        hooked = [layer for layer in layers if layer._forward_hooks or layer._forward_pre_hooks]
        own = [vars(layer).get("forward") is put for layer, put in zip(layers, self.wrappers, strict=True)]
        return not hooked and all(own)

    # -- devices -----------------------------------------------------------------------------------------------

    def _bring_together(
        self, forward: Forward, index: int, hidden: Tensor, kwargs: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return a layer's input, and arguments whose tables and mask are on the device on which it computes."""
        tables, mask = kwargs.get("position_embeddings"), kwargs.get("attention_mask")
        if self._bare and tables is not None and tables[0].device == hidden.device:
            return hidden, kwargs
        if forward.drops or index not in self._devices:
            # accelerate moves the input to the weights inside the forward wrapped here. Offloaded weights come to the
            # input's device.
            weight = next(self._layers[index].parameters(), hidden)
            self._devices[index] = hidden.device if weight.is_meta else weight.device
        device = self._devices[index]
        if hidden.device != device or (tables is not None and tables[0].device != device):
            hidden = hidden.to(device)
            tables = on_tensors(tables, lambda table: _here(forward, table, device))
            kwargs = {**kwargs, "position_embeddings": tables}
        return hidden, {**kwargs, "attention_mask": _here(forward, mask, device)}


@contextmanager
def _readers(forward: Forward, call: LayerCall) -> Iterator[Callable[[int], AttentionReader]]:
    """Yield a function that returns the reader of a sample, for stages before the layer."""
    mixes = torch.is_autocast_enabled(call.device.type)  # stages run without
    ahead = lru_cache(maxsize=1)(partial(Ahead, forward, call, mixes))  # few stages read
    yield lambda member: ahead().reader(member)
    if ahead.cache_info().currsize:
        ahead().memo = Memo()  # the readers refer to one another


@contextmanager
def _reading(
    call: LayerCall,
    signals: Sequence[Signal],
    readers: list[AttentionReader],
) -> Iterator[None]:
    """Compute signals from a layer's queries and keys while it attends, for stages before the next layer.

    Args:
        call: The layer's call.
        signals: The signals to compute.
        readers: The samples with their readers.
    """
    attended, weights = False, call.module.parameters()
    trains = torch.is_grad_enabled() and (call.input.requires_grad or any(weight.requires_grad for weight in weights))

    def attends(queries: Tensor, keys: Tensor, scaling: float, values: Tensor) -> None:
        nonlocal attended
        attended = True
        if trains and not torch.is_grad_enabled():
            queries, keys, values = map(without_gradient, (queries, keys, values))
        for reader in readers:
            reader.attended = queries, keys, scaling, values
        if not trains:
            note()

    def note() -> None:
        for reader in readers:
            note_attending(reader, signals)
        readers.clear()  # free queries and keys before the MLP runs

    with tapped_layer(call.module, attends):
        yield
    if not attended:
        raise unreadable(attention_of(call.module))
    note()  # a checkpointed layer runs again in the backward pass, and must do then what it did before


def _here(forward: Forward, tensor: Any, device: torch.device) -> Any:
    """Return a table or mask on the layer's device. It is moved once for all layers there."""
    if not isinstance(tensor, Tensor) or tensor.device == device:
        return tensor
    return forward.memo.once(lambda: tensor.to(device), "moved", tensor, device)
