"""Decode: caches that go on from another.

A layer of transformers makes a new tensor for every update, so a copy shares keys and values with its original until it
gets rows of its own. Recurrent states are written in place: these are cloned.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import DummyLayer, DynamicLayer, LinearAttentionLayer
from foveate.core.tensors import Memo, on_tensors
from foveate.engine import guards
from foveate.engine.cache import CACHE_LAYERS, FOLLOWING, MEMO_SIZE, PrunedLayer

STATES = ("conv_states", "recurrent_states")


def settle(cache: Any) -> Any:
    """Let every tensor of a cache have memory of its own: rows that a window keeps are views of longer ones.

    Raises:
        UnsupportedError: If a layer is of a kind that cannot be copied.
    """
    guards.refuse_cache(cache, CACHE_LAYERS)
    bases: dict[int, Tensor] = {}  # layers compare columns by their tensor, so the same stays the same
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer | DummyLayer) or not layer.is_initialized:
            continue
        if type(layer) is PrunedLayer:
            layer.settle()
            layer.move_out()
        layer.keys, layer.values = _compact(layer.keys), _compact(layer.values)
        if type(layer) is PrunedLayer:
            layer._room = None
            if layer.base is not None:
                layer.base = bases.setdefault(id(layer.base), _compact(layer.base))
    return cache


def copy_of(cache: Any, samples: int = 1) -> Any:
    """A cache of so many samples that all go on from the one sample of this cache.

    The rows that are there stand in memory once for all samples, except those of sliding windows, which leave, and
    recurrent states, which change.

    Args:
        cache: Of one sample; it stays as it is.
        samples: How many go on from it.
    """
    copied = copy.copy(cache)
    memo = Memo(MEMO_SIZE)
    spread = _Spread((0,) * samples, shares=samples > 1)
    copied.layers = [_layer(layer, memo, spread) for layer in cache.layers]
    return copied


class _Spread:
    """Takes samples of a tensor, the same ones to the same object: layers compare columns by it.

    Args:
        places: Of one sample, or of several.
        shares: Whether they are all the first one, whose keys and values may stand in memory once.
    """

    def __init__(self, places: Sequence[int], shares: bool) -> None:
        self.places = places
        self.shares = shares
        self._made: dict[int, Tensor] = {}

    @property
    def samples(self) -> int:
        """How many are taken."""
        return len(self.places)

    def __call__(self, tensor: Tensor) -> Tensor:
        if tuple(self.places) == tuple(range(len(tensor))):
            return tensor
        if id(tensor) not in self._made:
            self._made[id(tensor)] = self.own(tensor)
        return self._made[id(tensor)]

    def own(self, value: Any) -> Any:
        """A new tensor, also of one sample; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        return value.index_select(0, torch.tensor(self.places, device=value.device))


def _layer(layer: Any, memo: Memo, spread: _Spread) -> Any:
    """One layer of the copy."""
    if type(layer) not in CACHE_LAYERS:  # it may write in place; `settle` refuses such
        return copy.deepcopy(layer)
    copied = copy.copy(layer)
    if isinstance(layer, LinearAttentionLayer):
        for name, states in vars(copied).items():  # tensors by number, beside what is known of each
            if isinstance(states, dict):
                setattr(copied, name, {index: spread.own(state) for index, state in states.items()})
        return copied
    if type(layer) is PrunedLayer:
        copied._memo = memo
        for name in FOLLOWING:
            setattr(copied, name, on_tensors(getattr(layer, name), spread))
        copied.counted = None
        if layer.reads is not None:
            copied.reads = _layer(layer.reads, memo, spread)
    if not layer.is_initialized or isinstance(layer, DummyLayer):
        return copied
    if layer.is_sliding or not spread.shares:
        copied.keys, copied.values = spread(layer.keys), spread(layer.values)
        return copied
    if type(layer) is DynamicLayer:
        copied = PrunedLayer(copied, memo)
    copied.share(spread.samples)
    return copied


def tensors_of(layer: Any) -> Iterator[Tensor]:
    """Everything that a layer of a cache holds."""
    held = [getattr(layer, name, None) for name in ("keys", "values", *FOLLOWING)]
    held += [state for kind in STATES for state in getattr(layer, kind, {}).values()]
    yield from (tensor for tensor in held if isinstance(tensor, Tensor))
    if getattr(layer, "reads", None) is not None:
        yield from tensors_of(layer.reads)


def nbytes(cache: Any) -> int:
    """Bytes of all tensors in a cache; what layers share counts once."""
    held = {id(tensor): tensor.nbytes for layer in cache.layers for tensor in tensors_of(layer)}
    return sum(held.values())


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in no more memory than it needs."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
