"""Each layer, at once: the parts of a forward that are recorded, what they read of a call and what they leave."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from foveate._transformers import CACHE_NAMES, cache_in, with_cache
from foveate.core.patching import Patcher
from foveate.core.tensors import Change, Memo, send
from foveate.engine.arguments import tables_moved_up
from foveate.engine.extensions.replays.shared_rooms import RecordedLayer, Rooms, SharedColumns
from foveate.engine.extensions.replays.twins import outcome_with, outcome_without, twin_of
from foveate.engine.forward import Forward, Outcome
from foveate.engine.lives.bare import MEMO_SIZE, PrunedLayer
from foveate.engine.prompt_samples import Sample
from foveate.engine.runner import LayerRunner
from foveate.engine.streams import Original

Key = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Region:
    """A part of a forward whose kernels are the same for every call with the same key: a vision tower's call.

    The decoder's calls are subclasses. They also have `collect`, which returns what a plain run has left.

    Attributes:
        key: What calls must have in common; its first entry is the kind of region.
        tensors: The tensors that the part reads, except weights.
        handed: The arguments, nested: positional ones and those by name; of a decoder only those by name.
        plain: Runs the part as called.
        original: The function that is called.
        held: Tensors that a recording must keep alive: made before the call, and equal for every call with this key.
    """

    key: Key
    tensors: list[Tensor]
    handed: Any
    plain: Callable[[], Any]
    original: Original
    held: Any

    def arguments(self, given: Sequence[Tensor]) -> Any:
        """Return the arguments with the tensors that the part reads replaced by these."""
        return tree_map_only(Tensor, swap(self.tensors, given), self.handed)

    def twin(self, given: Sequence[Tensor]) -> Callable[[], Any]:
        """Return a function that runs the part on copies of its tensors and changes nothing else of the call."""
        args, kwargs = self.arguments(given)
        return partial(self.original, *args, **kwargs)

    def real(self, made: Any, change: Change) -> Any:
        """Return a recording's results with `change` applied to tensors, without anything a plain run does not make."""
        return results_with(made, change)

    def answer(self, made: Any) -> Any:
        """Store the results of a replay where a plain run would, and return the same output."""
        return made


@dataclass(slots=True, eq=False)
class MadeByDecoder:
    """The results of a decoder.

    Attributes:
        hidden: Its last hidden states, (samples, columns, width).
        layers: The layers of its cache; none for a step, which leaves its rows in rooms.
        outcome: The outcome of the forward; empty for a step.
        kind: The class of the decoder's output.
    """

    hidden: Tensor
    layers: Sequence[Any]
    outcome: Outcome
    kind: type

    def with_tensors(self, change: Change) -> "MadeByDecoder":
        """Return this with `change` applied to its tensors."""
        layers = layers_with(self.layers, change)
        return MadeByDecoder(change(self.hidden), layers, outcome_with(self.outcome, change), self.kind)

    def take_off(self, pads: int, samples: Sequence[Sample]) -> None:
        """Remove `pads` trailing columns of each sample."""
        shorter: dict[int, Tensor] = {}  # layers compare columns by tensor identity, so a shared tensor stays shared

        def cut(tensor: Tensor) -> Tensor:
            return shorter.setdefault(id(tensor), tensor[..., :-pads])

        for layer in self.layers:
            if isinstance(layer, PrunedLayer):
                layer.take_off(pads, cut)
            else:
                layer.keys, layer.values = layer.keys[..., :-pads, :], layer.values[..., :-pads, :]
        self.hidden, self.outcome = self.hidden[:, :-pads], outcome_without(self.outcome, pads, cut, samples)


@dataclass(slots=True, eq=False)
class DecoderCall(Region):
    """A decoder's call on a prompt. It also reads the outcome so far.

    Attributes:
        forward: The forward, which has begun.
        runner: Runs the forward's layers.
        cache: The cache among the arguments, empty, and not in `handed`; None if there is none.
        shown: The forward as it is recorded: with pads.
        pads: How many pads are behind each sample there, so that texts of several lengths share a recording.
    """

    forward: Forward
    runner: LayerRunner
    cache: Any
    shown: Forward
    pads: int

    def twin(self, given: Sequence[Tensor]) -> Callable[[], "MadeByDecoder"]:
        """See `Region`."""
        kwargs, shown = self.arguments(given), self.shown
        places = [sample.vision + index * shown.span for index, sample in enumerate(shown.samples)]
        columns = send(torch.cat(places), given[0].device)  # the decoder may add features there after its first layers
        self.held = self.held, columns
        if self.cache is not None:
            cache = copy.copy(self.cache)
            # A sliding-window layer's own tensor is on the host until rows come. Kernels read its copy.
            cache.layers = layers_with(cache.layers, lambda tensor: tensor.to(given[0].device, copy=True))
            self.held = self.held, [value for layer in cache.layers for value in vars(layer).values()]
            kwargs |= with_cache(cache)
        twin, runner = twin_of(shown, swap(self.tensors, given), kwargs), self.runner

        def run() -> MadeByDecoder:
            with runner.running(twin), Patcher() as patches:
                twin.family.add_at(patches, columns)
                return self.collect(self.original(**kwargs), twin)

        return run

    def collect(self, output: Any, forward: Forward | None = None) -> "MadeByDecoder":
        """Return what a plain run has left. For a twin, pass its forward."""
        layers = getattr(cache_in(output), "layers", ())
        return MadeByDecoder(_last_hidden(output), layers, (forward or self.forward).outcome, type(output))

    def real(self, made: "MadeByDecoder", change: Change) -> "MadeByDecoder":
        """See `Region`. Removes the pads."""
        other = made.with_tensors(change)
        if self.pads:
            other.take_off(self.pads, self.forward.samples)
        return other

    def answer(self, made: "MadeByDecoder") -> Any:
        """See `Region`."""
        forward = self.forward
        forward.outcome = made.outcome
        if self.cache is not None:
            self.cache.layers[:] = made.layers
            if forward.drops:
                forward.cache = self.cache
        return made.kind(last_hidden_state=made.hidden, **with_cache(self.cache))


def _last_hidden(output: Any) -> Tensor:
    """Return a decoder's last hidden states. Refuse other outputs."""
    more = {name for name, value in output.items() if value is not None} - {"last_hidden_state", *CACHE_NAMES}
    if more:
        raise NotImplementedError(f"the decoder also returns {', '.join(sorted(more))}")
    hidden: Tensor = output.last_hidden_state
    return hidden


@dataclass(slots=True, eq=False)
class StepCall(Region):
    """A decoder's call on rows that continue from a cache of pruned layers. It also reads `rows` and `live`.

    Attributes:
        forward, runner, cache: See `DecoderCall`.
        rooms: Memory of the recordings' rows.
        by_layer: For each layer, what it shares with others whose rooms hold the same columns.
        live: (samples, columns) bool, which unpruned columns are not padding, including those to come; None: all.
    """

    forward: Forward
    runner: LayerRunner
    cache: Any
    rooms: Rooms
    by_layer: list[SharedColumns]
    live: Tensor | None

    def twin(self, given: Sequence[Tensor]) -> Callable[[], "MadeByDecoder"]:
        """See `Region`."""
        change = swap(self.tensors, given)
        kwargs = self.arguments(given)
        cache, seen = copy.copy(self.cache), self.cache.get_seq_length()
        rooms = self.rooms.fill(self.cache, self.by_layer)
        cache.layers = [RecordedLayer(room, change(room.shared.place), seen) for room in rooms]
        kwargs |= with_cache(cache)
        forward, runner, embeds = self.forward, self.runner, kwargs["inputs_embeds"]
        family, numbers = forward.family, self.rooms.numbers
        live = None if self.live is None else change(self.live)
        like = embeds if forward.backend == "eager" else None

        def run() -> MadeByDecoder:
            twin = Forward(forward.program, family)
            with runner.running(twin), Patcher() as patches:
                for shared in dict.fromkeys(self.by_layer):
                    mask = shared.mask(change, numbers, live, like)
                    shift = None if shared.shift is None else change(shared.shift)
                    for index in shared.layers:
                        layer = family.layers[index]
                        original = partial(type(layer).forward, layer)
                        patches.put(layer, "forward", partial(_run_step, twin, index, original, mask, shift))
                output = self.original(**kwargs, attention_mask=mask)
            return self.collect(output)

        return run

    def collect(self, output: Any) -> "MadeByDecoder":
        """Return what a plain run has left, besides rows in the cache."""
        return MadeByDecoder(_last_hidden(output), (), Outcome(), type(output))

    def real(self, made: "MadeByDecoder", change: Change) -> "MadeByDecoder":
        """See `Region`. Removes rows that are pads."""
        return MadeByDecoder(change(made.hidden)[:, : self.forward.span], (), made.outcome, made.kind)

    def answer(self, made: "MadeByDecoder") -> Any:
        """See `Region`."""
        self.rooms.grow(self.cache, self.forward.span)
        return made.kind(last_hidden_state=made.hidden, **with_cache(self.cache))


def _run_step(
    forward: Forward, index: int, original: Original, mask: Tensor, shift: Tensor | None, hidden: Tensor, **kwargs: Any
) -> Any:
    """Run a layer on new rows with this mask, at positions reduced by `shift`."""
    kwargs["attention_mask"] = mask
    if shift is not None:
        kwargs["position_embeddings"] = tables_moved_up(forward, index, hidden, shift)
    return original(hidden, **kwargs)


def swap(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Change:
    """Return a function that replaces some tensors by others."""
    places = dict(zip(map(id, tensors), others, strict=True))
    return lambda tensor: places.get(id(tensor), tensor)


def results_with(made: Any, change: Change) -> Any:
    """Return results of a region with `change` applied to their tensors."""
    return made.with_tensors(change) if isinstance(made, MadeByDecoder) else tree_map_only(Tensor, change, made)


def layers_with(layers: Sequence[Any], change: Change) -> list[Any]:
    """Copy cache layers with `change` applied to their tensors."""
    memo, others = Memo(MEMO_SIZE), []
    for layer in layers:
        if isinstance(layer, PrunedLayer):
            others.append(layer.with_tensors(change, memo))
            continue
        other = object.__new__(type(layer))
        other.__dict__ = attributes = dict(vars(layer))
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                attributes[name] = change(value)
            elif type(value) is dict:  # states of a recurrent layer
                attributes[name] = {key: change(one) if isinstance(one, Tensor) else one for key, one in value.items()}
        others.append(other)
    return others
