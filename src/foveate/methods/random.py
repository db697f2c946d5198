"""Random: the control that every claim is compared with. Same schedule, tokens drawn at random."""

from torch import Tensor

from foveate.core.rank import top
from foveate.methods.scheduled import Scheduled
from foveate.methods.stages import LayerView

__all__ = ["METHOD", "Random", "lots"]


class Random(Scheduled):
    """Keeps tokens drawn at random, uniformly without replacement.

    The random score of a token depends only on the seed and the token's index. The batch, its padding and the device
    do not change it. A later cut selects from the tokens that the cut before it kept.

    Attributes:
        seed: Seed of the random scores, any integer.
        layers, keep, retention, tokens, min_keep, scope, skip_below: See `Scheduled`; layer 0 cuts before the decoder.
    """

    name = "random"

    seed: int = 0

    def select(self, view: LayerView, count: int) -> Tensor:
        return top(lots(view.tokens, self.seed), count)


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


METHOD = Random
