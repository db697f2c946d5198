"""What a method is compared with: dropping without a reason, at the same number of tokens in every layer."""

from collections.abc import Sequence
from dataclasses import replace

from foveate.methods.base import Method
from foveate.methods.finalkv import FinalKV
from foveate.methods.random import Random
from foveate.methods.uniform import Uniform

__all__ = ["same_schedule"]


def same_schedule(
    tokens: Sequence[int], entered: int, kv_layers: Sequence[int] = (), control: Random | Uniform | None = None
) -> Method:
    """Random or uniform dropping that leaves as many vision tokens in every layer as another method.

    For 144 tokens that become 37 before layer 2 of 4, `same_schedule((144, 144, 37, 37), 144)` is one random cut before
    layer 2.

    Args:
        tokens: Vision tokens of one sample in each decoder layer; never more than in the layer before.
        entered: How many enter the model; fewer in layer 0 means a cut before the decoder.
        kv_layers: Layers whose cache the other method cuts to its final tokens after the prompt, in order.
        control: Which of the two, with its seed; random with seed 0 if nothing is said.
    """
    layers: list[int] = []
    keep: list[float] = []
    before = entered
    for layer, count in enumerate(tokens):
        if count < before:
            layers.append(layer)
            keep.append((count + 0.5) / before)  # counts are truncated; half a token keeps clear of rounding
        before = count
    control = replace(control or Random(), layers=tuple(layers), keep=tuple(keep), min_keep=0)
    # With no cut behind the first of these layers, its cache has the final tokens already.
    if not kv_layers or not layers or layers[-1] <= kv_layers[0]:
        return control
    return FinalKV(inner=control, first_layer=kv_layers[0])
