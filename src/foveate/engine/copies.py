"""Decode: caches that continue from another cache.

A transformers layer makes a new tensor for every update, so a copy shares keys and values with its original until it
gets rows of its own. Recurrent states are written in place, so they are cloned.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from foveate._transformers import DummyLayer, DynamicLayer, LinearAttentionLayer
from foveate.core.tensors import Memo, on_tensors
from foveate.engine.cache import CACHE_LAYERS, FOLLOWING, MEMO_SIZE, PrunedLayer, refuse_cache

STATES = ("conv_states", "recurrent_states")


def compact(cache: Any) -> Any:
    """Give every tensor of a cache its own memory. Rows that a window keeps are views of longer tensors.

    Raises:
        UnsupportedError: If a layer is of a kind that cannot be copied.
    """
    refuse_cache(cache)
    bases: dict[int, Tensor] = {}  # layers compare columns by tensor identity, so a shared tensor stays shared
    for layer in cache.layers:
        if isinstance(layer, LinearAttentionLayer | DummyLayer) or not layer.is_initialized:
            continue
        if isinstance(layer, PrunedLayer):
            layer.settle()
            layer.leave_room()
            if layer.base is not None:
                layer.base = bases.setdefault(id(layer.base), _own_memory(layer.base))
            if layer.window_columns is not None:
                counted = layer.window_columns
                layer.window_columns = bases.setdefault(id(counted), _own_memory(counted))
            for values in layer.beside.values():
                bases.setdefault(id(values), _own_memory(values))
            layer.beside = {name: bases[id(values)] for name, values in layer.beside.items()}
        layer.keys, layer.values = _own_memory(layer.keys), _own_memory(layer.values)
    return cache


def copy_of(cache: Any, samples: int = 1) -> Any:
    """Return a cache of `samples` samples that all continue from the one sample of this cache.

    All samples share the rows in memory, except those of sliding windows, which leave, and recurrent states, which
    change.

    Args:
        cache: A cache of one sample; it is not changed.
        samples: How many samples continue from it.
    """
    copied = copy.copy(cache)
    memo, spread = Memo(MEMO_SIZE), Memo()  # layers compare columns by tensor identity: a shared tensor stays shared
    copied.layers = [_layer(layer, memo, spread, samples) for layer in cache.layers]
    return copied


def _layer(layer: Any, memo: Memo, spread: Memo, samples: int) -> Any:
    """Copy one layer.

    Args:
        layer: A layer of one sample.
        memo: Shared by all layers of the copy.
        spread: The repeated tensors made so far, by original.
        samples: How many samples the copy has.
    """
    if type(layer) not in CACHE_LAYERS:  # it may write in place; `compact` refuses it
        return copy.deepcopy(layer)
    copied = copy.copy(layer)
    if isinstance(layer, LinearAttentionLayer):
        for name, states in vars(copied).items():  # dicts hold tensors by index, and flags about each
            if isinstance(states, dict):
                own = tree_map_only(Tensor, lambda state: state.repeat_interleave(samples, 0), states)
                setattr(copied, name, own)
        return copied

    def repeat(tensor: Tensor) -> Tensor:
        if samples == 1:
            return tensor
        return spread.once(lambda: tensor.repeat_interleave(samples, dim=0), tensor)

    if isinstance(layer, PrunedLayer):
        copied._memo, copied.counted = memo, None
        for name in FOLLOWING:
            setattr(copied, name, on_tensors(getattr(layer, name), repeat))
        if layer.reads is not None:
            copied.reads = _layer(layer.reads, memo, spread, samples)
    if not layer.is_initialized or isinstance(layer, DummyLayer):
        return copied
    if layer.is_sliding or samples == 1:
        copied.keys, copied.values = repeat(copied.keys), repeat(copied.values)
        return copied
    if type(layer) is DynamicLayer:
        copied = PrunedLayer(copied, memo)
    copied.share(samples)
    return copied


def tensors_of(layer: Any) -> Iterator[Tensor]:
    """Yield every tensor that a cache layer holds."""
    held = [getattr(layer, name, None) for name in ("keys", "values", *FOLLOWING)]
    held += getattr(layer, "beside", {}).values()
    held += [state for kind in STATES for state in getattr(layer, kind, {}).values()]
    yield from (tensor for tensor in held if isinstance(tensor, Tensor))
    if getattr(layer, "reads", None) is not None:
        yield from tensors_of(layer.reads)


def nbytes(cache: Any) -> int:
    """Bytes of all tensors in a cache. Tensors that layers share count once."""
    held = {id(tensor): tensor.nbytes for layer in cache.layers for tensor in tensors_of(layer)}
    return sum(held.values())


def _own_memory(tensor: Tensor) -> Tensor:
    """Return the tensor in memory of exactly its size."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
