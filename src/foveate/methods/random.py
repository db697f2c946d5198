"""Random: the control that every claim is compared with. Same schedule as other methods, tokens chosen at random."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from foveate.contract import Chain, LayerView, Method, Shape
from foveate.contract.cuts import ManyCuts
from foveate.contract.follow import cached_layers
from foveate.core.rank import top
from foveate.methods.finalkv import FinalKV
from foveate.methods.uniform import Uniform


class Random(ManyCuts):
    """Keeps tokens chosen at random, uniformly without replacement.

    The random score of a token depends only on the seed and the token's index. The batch, its padding and the device do
    not change it. A later cut selects from the tokens that the cut before it kept.

    Attributes:
        seed: Seed of the random scores, any integer. None is 0. When several draws are compared, each gets its own
            seed.
        layers, keep, retention, tokens, min_keep, scope: See `Cuts`. Layer 0 cuts before the decoder.
    """

    name = "random"

    seed: int | None = None

    def pick(self, view: LayerView, count: int) -> Tensor:
        return top(lots(view.tokens, self.seed or 0), count)


def lots(tokens: Tensor, seed: int) -> Tensor:
    """A pseudo-random number for every index: (tokens,) int64 -> (tokens,) int64.

    The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over seed and index: pure integer arithmetic modulo 2^64,
    so it is equal on every device.
    """
    # Start at the index times 2^64 / golden ratio, SplitMix64's step, shifted by the seed.
    start = _as_int64(seed * 0xD1342543DE82EF95 + 1)
    state = (tokens.long() + 1) * _as_int64(0x9E3779B97F4A7C15) + start
    # Each line mixes high bits into low ones; the multiplication carries them up again. One input bit changes about
    # half of the output bits.
    first, second = _as_int64(0xBF58476D1CE4E5B9), _as_int64(0x94D049BB133111EB)
    state = (state ^ _shift(state, 30)) * first
    state = (state ^ _shift(state, 27)) * second
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64. Torch's shift fills with the sign; the mask removes these bits."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _as_int64(value: int) -> int:
    """The int64 that has the bits of `value` modulo 2^64: 2^64 − 1 gives −1."""
    value &= (1 << 64) - 1
    if value < 1 << 63:
        return value
    return value - (1 << 64)


def same_schedule(
    method: Method, tokens: Sequence[int], entered: int, control: Random | Uniform | None = None
) -> Method:
    """Random or uniform dropping that leaves as many vision tokens in every layer and its cache as another method.

    For a method that reduced 144 tokens to 37 before layer 2 of 4, `same_schedule(method, (144, 144, 37, 37), 144)` is
    one random cut before layer 2.

    Args:
        method: The other method.
        tokens: Its vision tokens of one sample in each decoder layer; never more than in the layer before.
        entered: How many enter the model. If layer 0 has fewer, the control cuts before the decoder.
        control: Which of the two controls, with its seed. None: random with seed 0.
    """
    kv_layers = cached_layers(method.placed(Shape(len(tokens))))
    layers: list[int] = []
    keep: list[float] = []
    before = entered
    for layer, count in enumerate(tokens):
        if count < before:
            layers.append(layer)
            keep.append((count + 0.5) / before)  # counts are truncated; half a token guards against rounding errors
        before = count
    control = replace(control or Random(), tokens=None, retention=None)
    control = replace(control, layers=tuple(layers), keep=tuple(keep), min_keep=0)
    # If no cut comes after the first of the cached layers, its cache has only the final tokens already.
    if not kv_layers or not layers or layers[-1] <= kv_layers[0]:
        return control
    return Chain.of(control, FinalKV(first_layer=kv_layers[0]))
