"""Budgets, and the solver that turns a budget into token counts per cut.

A budget is the mean number of vision tokens that a decoder layer processes, averaged over all layers. It may also be
given as a share of the vision tokens that entered the model.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Gt, Le, Lt

from foveate.core.fields import check
from foveate.errors import BudgetError, SettingError
from foveate.plain.upstream import brief

MOST_TOKENS = 2**31  # per image; more than any memory holds
ROUNDING = 1e-12  # float rounding error tolerated in a ratio
HALVINGS = 80
NEAR = 0.02  # allowed relative difference between the budget asked for and the one spent

Curve = Callable[[float], Sequence[float]]
"""Return the number of tokens after each cut for a parameter in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A mean over decoder layers: a number of vision tokens, or a share of those that entered the model.

    Raises:
        SettingError: If not exactly one of `tokens` and `retention` is given, or if it is out of range.
    """

    tokens: Annotated[float, Gt(0), Lt(MOST_TOKENS)] | None = None
    retention: Annotated[float, Gt(0), Le(1)] | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.retention is None):
            raise SettingError(
                "Give one of tokens= and retention=; got "
                f"tokens={brief(self.tokens)}, retention={brief(self.retention)}."
            )
        check(self)

    def mean(self, entered: int) -> float:
        """Return the mean in tokens for an image of which `entered` tokens entered the model, at most `entered`."""
        if self.retention is not None:
            return self.retention * entered
        assert self.tokens is not None
        return min(self.tokens, float(entered))


def is_met(asked: float, spent: float) -> bool:
    """Return whether `spent` is within 2 % of `asked`, both in tokens or both as shares. Token counts are whole."""
    return abs(spent - asked) <= NEAR * asked


def decoder_depth(model: Any) -> int:
    """Return the number of decoder layers of a model or its config."""
    config = getattr(model, "config", model)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return int(config.num_hidden_layers)


def check_depth(depth: int, least: int = 4) -> None:
    """Refuse a decoder that is too shallow for three cuts.

    Raises:
        SettingError: If `depth` is below `least`.
    """
    if depth < least:
        raise SettingError(f"A three-cut schedule needs a decoder of {least} layers or more; got {depth}.")


# -- the solver -----------------------------------------------------------------------------------------------


def solve(
    curve: Curve,
    cuts: Sequence[int],
    depth: int,
    mean: float,
    entered: int,
    started: int,
    owner: str,
    least: float = 1,
) -> float:
    """Find the parameter, in [0, 1], at which a decoder layer processes `mean` tokens on average.

    Example: cuts before layers 3, 17 and 22 of 32 leave p, 0.3 p and none of 576 tokens. All layers together process
    3 · 576 + 14 · 576 p + 5 · 173 p tokens. A mean of 192 gives p = 0.4935.

    Args:
        curve: Tokens left after each cut at a parameter. They never decrease as the parameter grows; at 1 all are left.
        cuts: Layers that are the first to process fewer tokens, ascending. 0 cuts what enters the decoder.
        depth: Decoder layers.
        mean: Mean tokens per layer to reach.
        entered: Vision tokens that entered the model. The error reports the floor as a share of these.
        started: How many of them entered the decoder.
        owner: Name of the method, for the error.
        least: Fewest tokens after each cut.

    Raises:
        BudgetError: If the mean is exceeded even with `least` tokens after every cut. The message names the floor.
    """
    if mean >= started:
        return 1.0
    bounds = [*cuts, depth]
    spans = [after - before for before, after in itertools.pairwise(bounds)]
    floor = (bounds[0] * started + (depth - bounds[0]) * min(least, started)) / depth
    if mean < floor * (1 - ROUNDING):
        advice = " or an earlier first cut" if bounds[0] else ""
        raise BudgetError(
            f"{owner} cannot average {mean:.4g} of {entered} vision tokens on {depth} layers: its first cut is before "
            f"layer {bounds[0]}, so its floor is {floor / entered:.2%}, {floor:.1f} tokens. Give a larger budget"
            f"{advice}.",
            floor=floor / entered,
        )
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        spent = bounds[0] * started + sum(size * span for size, span in zip(curve(middle), spans, strict=True))
        if spent > depth * mean:
            high = middle
        else:
            low = middle
    return min(1.0, low + ROUNDING)  # counts are truncated: 6.999… tokens must count as 7


def geometric(started: float, cuts: int, least: float = 1) -> Curve:
    """Return the curve N · q, N · q², N · q³, … tokens, never fewer than `least`.

    N = 440 and a mean of 192 give 316, 227, 163 and 117 tokens after cuts before layers 3, 7, 11 and 15 of 32.
    """
    return lambda q: [max(least, started * q**cut) for cut in range(1, cuts + 1)]


def at_cuts(shares: Sequence[float], cuts: int) -> tuple[float, ...]:
    """Interpolate the shares linearly for another number of cuts: 300, 200, 110 become 300, 110 for two cuts."""
    if cuts == len(shares):
        return tuple(shares)
    resized = []
    for cut in range(cuts):
        place = cut * (len(shares) - 1) / max(1, cuts - 1)
        left = min(int(place), len(shares) - 2)
        resized.append(shares[left] + (place - left) * (shares[left + 1] - shares[left]))
    return tuple(resized)


def proportional(started: float, shares: Sequence[float], least: float = 1) -> Curve:
    """Return the curve of token counts in the ratio of `shares`, at least `least` and at most `started`.

    576 tokens, a mean of 192 and cuts before layers 1, 11 and 21 of 32 in the ratio 330 : 210 : 62 give 302, 192, 57.
    """
    most = started / min(share for share in shares if share > 0)
    return lambda scale: [min(started, max(float(least), scale * most * share)) for share in shares]


# -- arithmetic shared by the schedules -----------------------------------------------------------------------


def half_up(number: float) -> int:
    """Round to the nearest whole number, halves up: 2.5 gives 3, where Python's `round` gives the even 2."""
    return math.floor(number + 0.5)


def keep_count(tokens: int, ratio: float, minimum: int = 1) -> int:
    """Return how many of `tokens` stay at keep ratio `ratio`.

    Truncates Python's float product, as V2Drop's released code does: 100 · 0.29 gives 28. The result is at least
    `minimum` and at most `tokens`.
    """
    return min(tokens, max(minimum, int(tokens * ratio)))
