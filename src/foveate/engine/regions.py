"""Each layer, at once: the parts of a forward that are recorded, what they read of a call and what they leave."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only, tree_unflatten

from foveate._transformers import CACHE_NAMES, cache_in, with_cache
from foveate.core.patching import Patcher
from foveate.core.tensors import Change, Memo
from foveate.engine.arguments import moved_up
from foveate.engine.cache import MEMO_SIZE, PrunedLayer
from foveate.engine.forward import Forward, Outcome
from foveate.engine.handed import Original
from foveate.engine.rooms import Rooms
from foveate.engine.runner import LayerRunner
from foveate.engine.samples import Sample

Key = tuple[Any, ...]
ROUNDING, HALF_ROUNDING = 1e-3, 1e-1
"""Of the largest number: how far one may be off where another kernel has rounded."""


@dataclass(slots=True, eq=False)
class Region:
    """A part of a forward whose kernels are the same for every call with the same key.

    It has `plain`, which runs it as it is called; `twin`, a function that runs it on copies of its tensors and changes
    nothing else that the call has; `collect`, what a plain run has left, a nest of tensors or a `MadeByDecoder`; and
    `answer`, which leaves what a replay has made where a plain run leaves it, and answers as that does.

    Attributes:
        key: What must be alike, first of all the kind of region.
        tensors: What it reads of a call, weights apart.
        original: What is called.
        leaves, spec: Its arguments, flat, as a recording is handed them.
        held: What a recording must hold: it was made on the way here, and is the same for every call with this key.
        exact: Whether a replay leaves the bits of a plain run; else another kernel may have rounded.
    """

    key: Key
    tensors: list[Tensor]
    original: Original
    leaves: list[Any]
    spec: Any
    held: Any
    exact: bool

    def arguments(self, tensors: Sequence[Tensor]) -> Any:
        """The arguments with these tensors in the place of their own, in order."""
        places = iter(tensors)
        leaves = [next(places) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tree_unflatten(leaves, self.spec)

    def real(self, made: Any, change: Change) -> Any:
        """What a recording has made, with other tensors, and nothing that a plain run does not make."""
        return tree_map_only(Tensor, change, made)


@dataclass(slots=True, eq=False)
class MadeByDecoder:
    """What a decoder leaves of a prompt.

    Attributes:
        hidden: Its last hidden states, (samples, columns, width).
        layers: Of its cache.
        outcome: Of the forward.
        kind: The class of what it answers.
    """

    hidden: Tensor
    layers: Sequence[Any]
    outcome: Outcome
    kind: type

    def with_tensors(self, change: Change) -> "MadeByDecoder":
        """What is left, with other tensors."""
        layers = layers_with(self.layers, change)
        return MadeByDecoder(change(self.hidden), layers, self.outcome.with_tensors(change), self.kind)

    def take_off(self, pads: int, samples: Sequence[Sample]) -> None:
        """Take off so many pads that have stood behind the samples."""
        shorter: dict[int, Tensor] = {}  # layers compare columns by their tensor, so the same stays the same

        def cut(tensor: Tensor) -> Tensor:
            return shorter.setdefault(id(tensor), tensor[..., :-pads])

        for layer in self.layers:
            layer.keys, layer.values = layer.keys[..., :-pads, :], layer.values[..., :-pads, :]
            if type(layer) is not PrunedLayer:
                continue
            layer.seen, layer._grown = layer.seen - pads, id(layer.keys)
            if layer.base is not None:
                layer.base, layer.base_end = cut(layer.base), layer.base_end - pads
        self.hidden, self.outcome = self.hidden[:, :-pads], self.outcome.without(pads, cut, samples)


@dataclass(slots=True, eq=False)
class InDecoder(Region):
    """A decoder's call, whose cache is none of the flat arguments.

    Attributes:
        forward: The forward, which has begun.
        runner: Has the forward in hand.
        kwargs: All arguments.
        cache: That among these.
    """

    forward: Forward
    runner: LayerRunner
    kwargs: dict[str, Any]
    cache: Any

    def plain(self) -> Any:
        """Run it as it is called."""
        return self.original(**self.kwargs)


@dataclass(slots=True, eq=False)
class DecoderCall(InDecoder):
    """A decoder's call on a prompt, with an empty cache or None. It reads the outcome so far too.

    Attributes:
        columns: Of vision tokens, where the decoder adds something to these behind its first layers.
        shown: The forward as a recording is shown it: with pads.
        pads: How many stand behind each sample there, so that texts of several lengths share a recording.
    """

    columns: Tensor | None
    shown: Forward
    pads: int

    def twin(self, given: Sequence[Tensor]) -> Callable[[], "MadeByDecoder"]:
        """See `Region`."""
        kwargs = self.arguments(given)
        if self.cache is not None:
            cache = copy.copy(self.cache)
            # What a window's layer holds of its own would be sent to the device when rows come.
            cache.layers = layers_with(cache.layers, lambda tensor: tensor.to(given[0].device, copy=True))
            kwargs |= with_cache(cache)
        twin, runner = self.shown.twin(swap(self.tensors, given), kwargs), self.runner

        def run() -> MadeByDecoder:
            with Patcher() as patches:
                if self.columns is not None:
                    twin.family.add_at(patches, self.columns)
                patches.put(runner, "forward", twin)
                return self.collect(self.original(**kwargs), twin)

        return run

    def collect(self, output: Any, forward: Forward | None = None) -> "MadeByDecoder":
        """See `Region`; another forward than the call's, if it is a twin."""
        layers = getattr(cache_in(output), "layers", ())
        return MadeByDecoder(_last_hidden(output), layers, (forward or self.forward).outcome, type(output))

    def real(self, made: "MadeByDecoder", change: Change) -> "MadeByDecoder":
        """Without the pads."""
        other = made.with_tensors(change)
        if self.pads:
            other.take_off(self.pads, self.forward.samples)
        return other

    def answer(self, made: "MadeByDecoder") -> Any:
        """See `Region`."""
        forward, record, outcome = self.forward, self.forward.outcome.record, made.outcome
        assert record is not None
        assert outcome.record is not None
        record.stages += outcome.record.stages[len(record.stages) :]
        outcome.record, forward.outcome = record, outcome
        if self.cache is None:
            return made.kind(last_hidden_state=made.hidden)
        self.cache.layers[:] = made.layers
        if forward.drops:
            forward.cache = self.cache
        return made.kind(last_hidden_state=made.hidden, **with_cache(self.cache))


def _last_hidden(output: Any) -> Tensor:
    """A decoder's last hidden states, if it answers nothing else."""
    more = {name for name, one in output.items() if one is not None} - {"last_hidden_state", *CACHE_NAMES}
    if more:
        raise NotImplementedError(f"the decoder answers {', '.join(sorted(more))} too")
    hidden: Tensor = output.last_hidden_state
    return hidden


@dataclass(slots=True, eq=False)
class SameRows:
    """Layers whose caches hold rows of the same columns.

    Attributes:
        layers: Which.
        places: How many their rooms have.
        place: Where new rows go, (rows,) int64.
        columns: The unpruned column at each place, (samples, places) int64, −1 for a pad; None: its number.
        shift: See `PrunedLayer`.
    """

    layers: list[int]
    places: int
    place: Tensor
    columns: Tensor | None
    shift: Tensor | None

    def mask(self, change: Change, numbers: Tensor, live: Tensor | None, like: Tensor | None) -> Tensor:
        """What new rows see, (samples or 1, 1, rows, places): bool, or numbers to add of the type of `like`."""
        seen = (numbers[: self.places] <= change(self.place)[:, None])[None]  # (1, rows, places)
        if self.columns is not None:
            columns = change(self.columns)
            there = columns >= 0
            if live is not None:
                there &= live.gather(1, columns.clamp(min=0, max=live.shape[1] - 1))
            seen = seen & there[:, None]
        elif live is not None:
            seen = seen & live[:, None, : self.places]
        if like is None:
            return seen[:, None]
        lowest = torch.finfo(like.dtype).min
        return torch.zeros_like(seen, dtype=like.dtype).masked_fill(~seen, lowest)[:, None]


@dataclass(slots=True, eq=False)
class StepCall(InDecoder):
    """A decoder's call on rows that go on with what a cache of pruned layers holds. It reads `rows` and `live` too.

    Attributes:
        rooms: Where recordings have rows.
        rows: Of each layer, what its cache holds.
        live: (samples, columns) bool, which unpruned columns are no padding, those to come among them; None: all.
    """

    rooms: Rooms
    rows: list[SameRows]
    live: Tensor | None

    @property
    def places(self) -> list[int]:
        """How many each layer's room has."""
        return [one.places for one in self.rows]

    def twin(self, given: Sequence[Tensor]) -> Callable[[], tuple[Tensor, type]]:
        """See `Region`."""
        change = swap(self.tensors, given)
        kwargs = self.arguments(given)
        layers = layers_with(self.cache.layers, lambda tensor: tensor)
        for layer, room, one in zip(layers, self.rooms.fill(self.cache, self.places), self.rows, strict=True):
            layer._room, layer._places = room, change(one.place)
        cache = copy.copy(self.cache)
        cache.layers = layers
        kwargs |= with_cache(cache)
        forward, runner, embeds = self.forward, self.runner, kwargs["inputs_embeds"]
        family, numbers = forward.family, self.rooms.numbers
        live = None if self.live is None else change(self.live)
        like = embeds if forward.backend == "eager" else None

        def run() -> tuple[Tensor, type]:
            twin = Forward(forward.program, family)
            with Patcher() as patches:
                patches.put(runner, "forward", twin)
                for one in dict.fromkeys(self.rows):
                    mask = one.mask(change, numbers, live, like)
                    shift = None if one.shift is None else change(one.shift)
                    for index in one.layers:
                        layer = family.layers[index]
                        original = partial(type(layer).forward, layer)
                        patches.put(layer, "forward", partial(_run_step, twin, index, original, mask, shift))
                output = self.original(**kwargs, attention_mask=mask)
            return self.collect(output)

        return run

    def collect(self, output: Any) -> tuple[Tensor, type]:
        """Last hidden states, and the class of what is answered."""
        return _last_hidden(output), type(output)

    def real(self, made: tuple[Tensor, type], change: Change) -> tuple[Tensor, type]:
        """Without rows that are pads."""
        hidden, kind = made
        return change(hidden)[:, : self.forward.span], kind

    def answer(self, made: tuple[Tensor, type]) -> Any:
        """See `Region`."""
        hidden, kind = made
        for layer in self.cache.layers:
            layer.grow(self.forward.span)
        return kind(last_hidden_state=hidden, **with_cache(self.cache))


def _run_step(
    forward: Forward, index: int, original: Original, mask: Tensor, shift: Tensor | None, hidden: Tensor, **kwargs: Any
) -> Any:
    """Run a layer on new rows that see this, `shift` below their positions."""
    kwargs["attention_mask"] = mask
    if shift is not None:
        family = forward.family
        kwargs["position_embeddings"] = forward.memo.once(
            lambda: family.rotary(index, hidden, moved_up(forward, shift)), shift, family.rotary_type(index)
        )
    return original(hidden, **kwargs)


@dataclass(slots=True, eq=False)
class TowerCall(Region):
    """A vision tower's call on pixels.

    Attributes:
        on_host: More of its arguments by name: the host reads them, so that their numbers are in the key.
    """

    on_host: Mapping[str, Any]

    def plain(self) -> Any:
        """Run it as it is called."""
        return self._run(self.tensors)

    def twin(self, given: Sequence[Tensor]) -> Callable[[], Any]:
        """See `Region`."""
        return lambda: self.collect(self._run(given))

    def collect(self, output: Any) -> Any:
        """See `Region`."""
        return output

    def answer(self, made: Any) -> Any:
        """See `Region`."""
        return made

    def _run(self, tensors: Sequence[Tensor]) -> Any:
        args, kwargs = self.arguments(tensors)
        return self.original(*args, **kwargs, **self.on_host)


def swap(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Change:
    """Puts others in the place of some tensors."""
    places = dict(zip(map(id, tensors), others, strict=True))
    return lambda tensor: places.get(id(tensor), tensor)


def layers_with(layers: Sequence[Any], change: Change) -> list[Any]:
    """Layers of a cache with other tensors."""
    memo, others = Memo(MEMO_SIZE), []
    for layer in layers:
        other = object.__new__(type(layer))
        other.__dict__ = attributes = dict(vars(layer))
        for name, value in vars(layer).items():
            if type(value) is Tensor:
                attributes[name] = change(value)
            elif type(value) is dict:  # states of a recurrent layer
                attributes[name] = {key: change(one) if type(one) is Tensor else one for key, one in value.items()}
        if type(other) is PrunedLayer:
            other._memo, other._grown = memo, id(other.keys)
        others.append(other)
    return others


def is_near(one: Tensor, plain: Tensor) -> bool:
    """Whether numbers are those of a plain run, of which some may have come from another kernel."""
    if not one.is_floating_point() or one.shape != plain.shape or not one.numel():
        return torch.equal(one, plain)
    limit = ROUNDING if one.dtype == torch.float32 else HALF_ROUNDING
    return bool((one - plain).abs().max() <= limit * plain.abs().max())
