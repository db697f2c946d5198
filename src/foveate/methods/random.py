"""Random: the control every claim is held against. Same schedule, tokens drawn by lot."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from foveate.core.rank import top
from foveate.methods.base import View
from foveate.methods.staged import StagedMethod

__all__ = ["METHOD", "Random", "lots"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Random(StagedMethod):
    """Keeps tokens drawn by lot, uniformly without replacement.

    A lot depends on the seed and the token's own ordinal alone, so neither the batch nor its padding nor
    the device changes what is drawn, and a later cut draws from the survivors of the one before.

    Attributes:
        layers: Decoder layers whose input is cut; 0 cuts before the decoder.
        keep: Share of the arriving vision tokens that stays at each, in [0, 1].
        seed: Which draw, any integer.
        min_keep, scope, skip_below: See `StagedMethod`.
    """

    name: ClassVar[str] = "random"

    layers: tuple[int, ...] = (3, 17, 22)
    keep: tuple[float, ...] = (0.5, 0.3, 0.0)
    seed: int = 0

    @property
    def together(self) -> bool:
        return True

    def select(self, view: View, count: int) -> Tensor:
        return top(lots(view.tokens, self.seed), count)


def lots(tokens: Tensor, seed: int) -> Tensor:
    """A pseudo-random number for every ordinal: (tokens,) int64 -> (tokens,) int64.

    The finaliser of SplitMix64 (Steele et al., OOPSLA 2014) over seed and ordinal: pure integer
    arithmetic modulo 2^64, so equal on every device.
    """
    golden, first, second = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
    state = (tokens.long() + 1) * golden + _signed(seed * 0xD1342543DE82EF95 + 1)
    state = (state ^ _shift(state, 30)) * first
    state = (state ^ _shift(state, 27)) * second
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """The int64 that has the bits of `value` modulo 2^64."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


METHOD = Random
