"""Schedules: which layers cut, and how many tokens each leaves, for a budget. The one place that solves them.

A budget is a mean: vision tokens that a decoder layer processes, averaged over all layers, or the same as a share of
the vision tokens that entered the model.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from foveate._upstream import brief
from foveate.errors import BudgetError, SettingError

__all__ = [
    "Budget",
    "as_layers",
    "budget_of",
    "check_count",
    "decoder_depth",
    "default_layers",
    "entry_floor",
    "entry_sizes",
    "geometric_counts",
    "half_up",
    "left_by_one_cut",
    "scaled_counts",
    "staged_ratios",
]

SECOND_KEEP = 0.3  # the middle ratio of V2Drop's 192-token setting, which solved schedules start from
PUBLISHED_LAYERS = {32: (3, 17, 22), 28: (3, 16, 22)}  # V2Drop's, by the decoder's depth
MOST_TOKENS = 2**31  # of an image: no memory holds so many
ROUNDING = 1e-12  # what float rounding may take off a ratio


@dataclass(frozen=True, slots=True)
class Budget:
    """A mean over decoder layers: a number of vision tokens, or a share of those that entered.

    Raises:
        SettingError: If not exactly one is given, or it leaves its range.
    """

    tokens: float | None = None
    retention: float | None = None

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.retention is None):
            raise SettingError(
                "Give one of tokens= and retention=; got "
                f"tokens={brief(self.tokens)}, retention={brief(self.retention)}."
            )
        for name in ("tokens", "retention"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
                raise SettingError(f"{name} must be a number; got {brief(value)}.")
        if self.retention is not None and not 0 < self.retention <= 1:
            raise SettingError(f"retention must be above 0 and at most 1; got {brief(self.retention)}.")
        if self.tokens is not None and not 0 < self.tokens < MOST_TOKENS:
            raise SettingError(f"tokens must be a finite number above 0; got {brief(self.tokens)}.")

    def mean(self, entered: int) -> float:
        """The mean as a number of tokens, for an image of which `entered` tokens entered the model; at most these."""
        if self.retention is not None:
            return self.retention * entered
        assert self.tokens is not None
        return min(self.tokens, float(entered))


def budget_of(
    model: Any, tokens: float | None, retention: float | None, vision_tokens: int | None
) -> tuple[float, int | None]:
    """A budget for a model as (mean retention in (0, 1], vision tokens if known).

    Raises:
        SettingError: If not exactly one of `tokens` and `retention` is given, or it leaves its range.
    """
    Budget(tokens, retention)  # or a refusal
    if vision_tokens is not None:
        check_count("vision_tokens", vision_tokens)
    if retention is None:
        assert tokens is not None
        vision_tokens = vision_token_count(model, vision_tokens)
        retention = tokens / vision_tokens
    if retention > 1:
        raise SettingError(f"tokens must be between 1 and {vision_tokens} for this input; got {tokens:.6g}.")
    return retention, vision_tokens


def check_count(name: str, value: Any) -> None:
    """Refuse what is no number of an image's tokens.

    Raises:
        SettingError: If that is so.
    """
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or not 1 <= value < MOST_TOKENS:
        raise SettingError(f"{name} is the number of the image's tokens, 1 or more; got {brief(value)}.")


FIXED_COUNT = frozenset({"llava", "vipllava", "paligemma"})  # one token count for every image


def vision_token_count(model: Any, vision_tokens: int | None) -> int:
    """Vision tokens of the model's usual input: as given, or the family's fixed count.

    Raises:
        SettingError: If the count depends on the image and none was given.
    """
    if vision_tokens is not None:
        return vision_tokens
    config = getattr(model, "config", model)
    model_type = getattr(config, "model_type", "model")
    count: int | None = None
    if model_type in FIXED_COUNT:
        count = _picture_tokens(config)
    if count is None:
        raise SettingError(
            f"The number of vision tokens of a {model_type!r} model depends on the image: "
            "give vision_tokens=…, or give retention=… instead of tokens=…."
        )
    return count


def _picture_tokens(config: Any) -> int | None:
    """Vision tokens of every picture, from the tower's grid: `image_seq_length` may be a default that does not fit the
    tower. None where pictures keep their shape (Pixtral), so that the count differs.

    CLIP at 336 pixels with patches of 14: 24 x 24 = 576, and one more with the CLS ("full").
    """
    vision = getattr(config, "vision_config", None)
    if vision is None:
        return int(config.image_seq_length)
    if vision.model_type not in ("clip_vision_model", "siglip_vision_model"):
        return None
    patches = int((vision.image_size // vision.patch_size) ** 2)
    cls = int(vision.model_type == "clip_vision_model")
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if strategy is None:  # the projector gets no CLS
        return patches
    first_dropped = int(strategy == "default")  # transformers drops the first row, whether or not it is a CLS
    return patches + cls - first_dropped


def decoder_depth(model: Any) -> int:
    """Decoder layers of a model or of its config."""
    config = getattr(model, "config", model)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    return int(config.num_hidden_layers)


def as_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Layers as a tuple.

    Raises:
        SettingError: If they are not whole numbers that ascend strictly.
    """
    if not isinstance(layers, Sequence):
        raise SettingError(f"Layers must be a list of whole numbers; got {brief(layers)}.")
    values = tuple(layers)
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in values):
        raise SettingError(f"Layers must be whole numbers; got {brief(values)}.")
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise SettingError(f"Layers must ascend strictly; got {brief(values)}.")
    return values


# -- V2Drop's: three cuts, or one -----------------------------------------------------------------------------


def default_layers(depth: int) -> tuple[int, int, int]:
    """V2Drop's cuts for a decoder of `depth` layers: 32 gives 3, 17, 22 and 28 gives 3, 16, 22.

    At other depths the first cut is at 3 (below twenty layers at 10 %), the others at 55 % and 72 %: 40 gives 3, 22,
    29.

    Raises:
        SettingError: If the decoder has fewer than four layers.
    """
    if depth < 4:
        raise SettingError(f"A three-cut schedule needs a decoder of four layers or more; got {depth}.")
    if depth in PUBLISHED_LAYERS:
        return PUBLISHED_LAYERS[depth]
    first = 3
    if depth < 20:
        first = max(1, round(0.1 * depth))
    second = max(first + 1, round(0.55 * depth))
    third = max(second + 1, round(0.72 * depth))
    return first, second, min(depth - 1, third)


def staged_ratios(
    cuts: tuple[int, ...],
    depth: int,
    mean: float,
    start: float,
    entered: int | None,
    floor: float,
    owner: str,
    movable: bool = True,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Cuts and the share that each keeps of the arriving tokens, so that the mean over decoder layers meets a budget.

    With three cuts before layers a, b and c of L, which keep r1, r2 and then `floor` tokens, the layers process

        a  +  r1 · (b − a)  +  r1 · r2 · (c − b)  +  floor / start · (L − c)  =  L · mean / start

    in units of a layer that processes all `start` tokens. r2 is 0.3, and r1 is solved for. Where that r1 exceeds 1, it
    is 1 and r2 is solved for; where r2 exceeds 1 too, the third cut moves later if it may, and its ratio is solved for.
    With one cut its ratio is solved for.

    Args:
        cuts: Three layers, or one.
        depth: Decoder layers.
        mean: Tokens that a layer shall process on average, in the unit of `start`.
        start: Tokens that enter the decoder, in the same unit.
        entered: Vision tokens, if the unit is a token; None if it is a share.
        floor: What the last cut leaves, in the same unit.
        owner: Whose schedule it is, for the error.
        movable: Whether the third cut may move.

    Raises:
        BudgetError: If the layers before the first cut alone exceed it; the message names the floor.
        SettingError: If there are neither three cuts nor one.
    """
    if len(cuts) not in (1, 3):
        raise SettingError(f"A budget can be solved for three cuts, or one; got layers {cuts}.")
    # The budget in layers at full count: 192 of 576 tokens on 32 layers pay for 10.7 of them.
    spent = depth * mean / start
    share_left = floor / start
    lowest = (cuts[0] + share_left * (depth - cuts[0])) / depth
    if spent <= cuts[0] or lowest > spent / depth + ROUNDING:
        message = _refusal(owner, cuts, depth, mean, start, entered, lowest)
        raise BudgetError(message, lowest * start / (entered or start))
    if len(cuts) == 1:
        ratio = (spent - cuts[0]) / (depth - cuts[0])
        # Counts are truncated: the share of 7 tokens must not come out as 6.999….
        return cuts, (min(1.0, ratio + ROUNDING),)
    first, second, third = cuts
    last = share_left * (depth - third)  # what the layers behind the last cut cost
    # Cuts at 3, 17, 22 with 10.7 layers to spend: (10.67 − 0.02 − 3) / (14 + 0.3 · 5) keeps 49 % at the first.
    ratio = (spent - last - first) / ((second - first) + SECOND_KEEP * (third - second))
    if ratio <= 1:
        return cuts, (ratio, SECOND_KEEP, 0.0)
    if spent - last < third:
        return cuts, (1.0, (spent - last - second) / (third - second), 0.0)
    # Keeping all tokens up to the third cut spends too little: it moves later, and keeps what is left to spend.
    if movable:
        third = min(depth - 1, int(spent))
    return (first, second, third), (1.0, 1.0, min(1.0, (spent - third) / (depth - third)))


def left_by_one_cut(budget: Budget, entered: int, started: int, depth: int, layer: int, owner: str) -> int:
    """Tokens that a single cut before `layer` leaves, so that the mean over decoder layers meets a budget.

    A mean of 192 with a cut before layer 2 of 32 leaves 166 of 576 tokens.

    Args:
        budget: The mean, of the tokens that entered the model.
        entered: These.
        started: Rows of them that entered the decoder.
        depth: Decoder layers.
        layer: Which one is the first to process fewer tokens.
        owner: Whose cut it is, for the error.

    Raises:
        BudgetError: If one token is still too many; the message names the floor.
    """
    mean = budget.mean(entered)
    if not started or mean >= started:
        return started
    _, (ratio,) = staged_ratios((layer,), depth, mean, started, entered, min(1, started), owner)
    return max(1, half_up(ratio * started))


def _refusal(
    owner: str, cuts: Sequence[int], depth: int, mean: float, start: float, entered: int | None, lowest: float
) -> str:
    asked, least = f"{mean / start:.2%} of the vision tokens", f"{lowest:.2%}"
    if entered is not None:
        asked = f"{mean:.4g} of {entered} vision tokens"
        least = f"{lowest * start / entered:.2%}, {lowest * start:.1f} tokens"
    advice = "Give a larger budget"
    if cuts[0] > 1:
        advice += f", or an earlier first cut: layers={(1, *cuts[1:])}"
    elif cuts[0] == 1:
        advice += ", or an earlier first cut: a reduction before the decoder"
    return (
        f"{owner} cannot average {asked} on {depth} layers: its first cut is before layer {cuts[0]}, "
        f"so its floor is {least}. {advice}."
    )


# -- VisionDrop's: an entry factor, then a geometric fall -----------------------------------------------------


def entry_sizes(mean: float, full: float, depth: int, cuts: Sequence[int], entry: float) -> list[float]:
    """Stage sizes n_i = e · T · ρ^i whose mean over the layers is T: the paper's schedule for any number of cuts.

    With w_i the share of the layers that stage i spans, ρ is the root of e · Σ w_i ρ^i = 1. For four stages of equal
    length e = 1.5 gives ρ = 0.7336, and T = 32 the sizes 48, 35.2, 25.8 and 19.0.

    `entry` (e) is lowered to full / T where e · T exceeds the image; at e <= 1 every stage is T.
    """
    lowered = min(entry, full / mean)
    bounds = [0, *cuts, depth]  # stage 0, the tower's, spans the layers before the first cut
    weights = [(after - before) / depth for before, after in itertools.pairwise(bounds)]
    if lowered <= 1:
        return [mean] * len(weights)

    def exceeds(ratio: float) -> bool:
        shares = (weight * ratio**stage for stage, weight in enumerate(weights))
        return lowered * sum(shares) > 1

    ratio, _ = _bisected(0.0, 1.0, exceeds, halvings=100)
    return [lowered * mean * ratio**stage for stage in range(len(weights))]


def entry_floor(full: float, depth: int, cuts: Sequence[int], entry: float) -> float:
    """The smallest mean T whose last stage has one token."""

    def leaves_one(mean: float) -> bool:
        return entry_sizes(mean, full, depth, cuts, entry)[-1] >= 1

    _, floor = _bisected(1e-6, float(full), leaves_one, halvings=100)
    return floor


# -- MustDrop's: a geometric fall from what enters the decoder ------------------------------------------------


def geometric_counts(mean: float, start: int, depth: int, cuts: Sequence[int], least: int) -> tuple[int, ...]:
    """n_i = N · q^i tokens behind cut i = 1 …, never below `least`, whose mean over the layers is `mean`.

    `start` (N) tokens enter, and q is solved for. N = 440 and a mean of 192 give 316, 227, 163 and 117 tokens behind
    cuts at 3, 7, 11 and 15 of 32 layers.
    """
    bounds = [*cuts, depth]
    spans = [after - before for before, after in itertools.pairwise(bounds)]  # layers behind each cut
    before_cuts = bounds[0] * start

    def sizes(ratio: float) -> list[float]:
        return [max(least, 1, start * ratio**cut) for cut in range(1, len(cuts) + 1)]

    def exceeds(ratio: float) -> bool:
        behind_cuts = sum(size * span for size, span in zip(sizes(ratio), spans, strict=True))
        return (before_cuts + behind_cuts) / depth > mean

    ratio, _ = _bisected(0.0, 1.0, exceeds, halvings=60)
    return tuple(half_up(size) for size in sizes(ratio))


# -- CLSE's: counts in a fixed ratio --------------------------------------------------------------------------------


def scaled_counts(
    budget: Budget, entered: int, started: int, depth: int, cuts: Sequence[int], shares: Sequence[float], owner: str
) -> tuple[int, ...]:
    """Tokens behind each cut, in the ratio of `shares` and never more than started, whose mean over the layers meets a
    budget.

    576 tokens, a mean of 192 and cuts before 1, 11 and 21 of 32 layers in the ratio 330 : 210 : 62 give 302, 192, 57.

    Args:
        budget: The mean, of the tokens that entered the model.
        entered: These.
        started: Rows of them that entered the decoder.
        depth: Decoder layers.
        cuts: Layers.
        shares: Of what the cuts leave.
        owner: Whose cuts they are, for the error.

    Raises:
        BudgetError: If one token behind the first cut is still too many; the message names the floor.
    """
    mean = budget.mean(entered)
    if not started or mean >= started:
        return (started,) * len(cuts)
    floor = (cuts[0] * started + depth - cuts[0]) / depth
    if mean < floor:
        raise BudgetError(
            f"{owner} cannot average {mean:.4g} of {entered} vision tokens on {depth} layers: its cuts are before "
            f"layers {tuple(cuts)}, so its floor is {floor:.4g} tokens. Give a larger budget, or an earlier first cut.",
            floor=floor / entered,
        )
    bounds = [*cuts, depth]
    spans = [after - before for before, after in itertools.pairwise(bounds)]

    def sizes(scale: float) -> list[float]:
        return [min(started, max(1.0, scale * share)) for share in shares]

    def exceeds(scale: float) -> bool:
        behind_cuts = sum(size * span for size, span in zip(sizes(scale), spans, strict=True))
        return (cuts[0] * started + behind_cuts) / depth > mean

    scale, _ = _bisected(0.0, started / min(share for share in shares if share > 0), exceeds, halvings=80)
    return tuple(half_up(size) for size in sizes(scale))


# -- arithmetic that the schedules share ----------------------------------------------------------------------


def half_up(number: float) -> int:
    """The nearest whole number, halves up: 2.5 gives 3, where Python's `round` gives the even 2."""
    return math.floor(number + 0.5)


def _bisected(low: float, high: float, holds: Callable[[float], bool], halvings: int) -> tuple[float, float]:
    """Halve an interval, and go on with the half in which `holds` turns from false (below) to true (above)."""
    for _ in range(halvings):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return low, high
