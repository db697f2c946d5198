"""Random: the control that every claim is compared with. Same schedule, tokens drawn at random."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from foveate.contract import Chain, Count, Cuts, Layers, LayerView, Method, Shape, Shares, Unit
from foveate.contract.follow import cached_layers, in_order
from foveate.core.rank import top
from foveate.methods.finalkv import FinalKV
from foveate.methods.uniform import Uniform


class Random(Cuts):
    """Keeps tokens drawn at random, uniformly without replacement.

    The random score of a token depends only on the seed and the token's index. The batch, its padding and the device
    do not change it. A later cut selects from the tokens that the cut before it kept.

    Attributes:
        seed: Seed of the random scores, any integer. None is 0; where several draws are compared, each has its own.
        layers, keep, retention, tokens, min_keep, scope: See `Cuts`; layer 0 cuts before the decoder.
    """

    name = "random"

    layers: Layers | None = None
    keep: Shares | None = None
    min_keep: Count = 1
    scope: Unit = "sample"
    seed: int | None = None

    def pick(self, view: LayerView, count: int) -> Tensor:
        return top(lots(view.tokens, self.seed or 0), count)


def lots(tokens: Tensor, seed: int) -> Tensor:
    """A pseudo-random number for every ordinal: (tokens,) int64 -> (tokens,) int64.

    The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over seed and ordinal: pure integer
    arithmetic modulo 2^64, so equal on every device.
    """
    # Start at the ordinal times 2^64 / golden ratio, which is SplitMix64's step, moved by the seed.
    start = _signed(seed * 0xD1342543DE82EF95 + 1)
    state = (tokens.long() + 1) * _signed(0x9E3779B97F4A7C15) + start
    # Each line mixes high bits into low ones. Multiplying takes them up again, so that one bit changes half of all.
    first, second = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
    state = (state ^ _shift(state, 30)) * first
    state = (state ^ _shift(state, 27)) * second
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64. Torch's is arithmetic: it fills with the sign, which the mask takes off."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 that has the bits of `value` modulo 2^64: 2^64 − 1 gives −1."""
    value &= (1 << 64) - 1
    if value < 1 << 63:
        return value
    return value - (1 << 64)


def same_schedule(
    method: Method, tokens: Sequence[int], entered: int, control: Random | Uniform | None = None
) -> Method:
    """Random or uniform dropping that leaves as many vision tokens in every layer, and cache, as another method did.

    Of a method by which 144 tokens became 37 before layer 2 of 4, `same_schedule(method, (144, 144, 37, 37), 144)` is
    one random cut before layer 2.

    Args:
        method: The other method.
        tokens: Its vision tokens of one sample in each decoder layer; never more than in the layer before.
        entered: How many enter the model; fewer in layer 0 means a cut before the decoder.
        control: Which of the two, with its seed; random with seed 0 if nothing is said.
    """
    kv_layers = cached_layers(in_order(method.stages(Shape(len(tokens)))))
    layers: list[int] = []
    keep: list[float] = []
    before = entered
    for layer, count in enumerate(tokens):
        if count < before:
            layers.append(layer)
            keep.append((count + 0.5) / before)  # counts are truncated; half a token keeps clear of rounding
        before = count
    control = replace(control or Random(), tokens=None, retention=None)
    control = replace(control, layers=tuple(layers), keep=tuple(keep), min_keep=0)
    # With no cut behind the first of these layers, its cache has the final tokens already.
    if not kv_layers or not layers or layers[-1] <= kv_layers[0]:
        return control
    return Chain.of(control, FinalKV(first_layer=kv_layers[0]))


METHOD = Random
