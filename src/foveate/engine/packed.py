"""Decode: a cache as named tensors and plain values, so that it can be written to a file, and back, bit for bit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from foveate.core.memo import Memo
from foveate.engine.cache import MEMO_SIZE, PrunedLayer
from foveate.engine.copies import STATES, tensors_of
from foveate.families.base import Family

__all__ = ["pack", "unpack"]

Values = dict[str, Any]
KINDS = {DynamicLayer: "all", DynamicSlidingWindowLayer: "window", LinearAttentionLayer: "state", PrunedLayer: "pruned"}
OF_PRUNED = ("seen", "base_end", "ragged", "window", "is_sliding", "_pruned")


def pack(cache: Any) -> tuple[dict[str, Tensor], list[Values]]:
    """The tensors of a cache by name, and what else there is to know of each layer.

    Layers that share columns or a shift share the tensor: each names the one that has it.
    """
    tensors: dict[str, Tensor] = {}
    layers = []
    shared: dict[int, str] = {}
    for index, layer in enumerate(cache.layers):
        values: Values = {"kind": KINDS[type(layer)], "tensors": {}}
        for name, tensor in tensors_of(layer):
            place = f"layer.{index}.{name}"
            if name in ("base", "shift"):
                place = shared.setdefault(id(tensor), place)
            tensors[place] = tensor
            values["tensors"][name] = place
        if values["kind"] == "pruned":
            values |= {name: getattr(layer, name) for name in OF_PRUNED}
        elif values["kind"] == "window":
            values["seen"] = layer.get_seq_length()
        layers.append(values)
    return tensors, layers


def unpack(tensors: Mapping[str, Tensor], layers: Sequence[Values], family: Family) -> Any:
    """The cache that `pack` made these of, on the devices of the family's layers.

    Raises:
        LookupError, TypeError, ValueError: If they are no such cache of a model like this one.
    """
    cache = DynamicCache(config=family.text.config)
    if not len(cache.layers) == len(layers) == len(family.layers):
        raise ValueError(f"a cache of {len(layers)} layers for a decoder of {len(family.layers)}")
    memo = Memo(MEMO_SIZE)
    moved: dict[tuple[str, torch.device], Tensor] = {}
    for index, values in enumerate(layers):
        device = _device(family, index)
        held = {}
        for name, place in values["tensors"].items():
            if (place, device) not in moved:
                moved[place, device] = tensors[place].to(device)
            held[name] = moved[place, device]
        layer = cache.layers[index]
        if values["kind"] == "pruned":
            cache.layers[index] = _pruned(layer, values, held, memo)
        elif values["kind"] != KINDS[type(layer)]:
            raise ValueError(f"layer {index} is of the kind {values['kind']}, the model's is not")
        elif values["kind"] == "state":
            _fill_states(layer, held)
        else:
            _fill(layer, values, held)
    return cache


def _device(family: Family, index: int) -> torch.device:
    """Where a layer computes."""
    weight = next(family.layers[index].parameters())
    device: torch.device = family.model.device if weight.is_meta else weight.device
    return device


def _fill(layer: Any, values: Values, held: Mapping[str, Tensor]) -> None:
    layer.lazy_initialization(held["keys"], held["values"])
    layer.keys, layer.values = held["keys"], held["values"]
    if values["kind"] == "window":
        layer.cumulative_length = int(values["seen"])


def _pruned(layer: Any, values: Values, held: Mapping[str, Tensor], memo: Memo) -> PrunedLayer:
    """A layer that has lost tokens, in the place of the usual one."""
    layer.lazy_initialization(held["keys"], held["values"])
    layer.keys, layer.values = held["keys"], held["values"]
    pruned = PrunedLayer(layer, memo)
    for name in OF_PRUNED:
        setattr(pruned, name, values[name])
    pruned.base, pruned.shift = held.get("base"), held.get("shift")
    return pruned


def _fill_states(layer: Any, held: Mapping[str, Tensor]) -> None:
    for name, state in held.items():
        kind, _, number = name.partition(".")
        if kind not in STATES:
            raise ValueError(f"a recurrent layer holds {name}")
        index = int(number)
        getattr(layer, kind)[index] = state
        getattr(layer, f"is_{kind}_initialized")[index] = True
        layer.dtype, layer.device = state.dtype, state.device
        if kind == "conv_states":
            layer.conv_kernel_size[index] = state.shape[-1]
        layer.has_previous_state[index] = True
