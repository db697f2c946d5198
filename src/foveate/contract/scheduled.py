"""What methods share that cut before decoder layers: several times, by ratios, once, or to counts in a fixed ratio."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from operator import mul
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from foveate.contract.budget import at_cuts, check_depth, geometric, half_up, proportional
from foveate.contract.method import Budgeted
from foveate.contract.settings import Count, Counts, Layers, Positions, Share, Shares, Unit
from foveate.contract.stages import LayerStage, Shape, Stage
from foveate.core.rank import keep_count, spread, top
from foveate.core.signals import Attention, Signal
from foveate.core.views import Arriving, LayerView
from foveate.errors import SettingError

LATER_KEEP = 0.3  # what cuts between the first and the last keep: the middle ratio of V2Drop's 192-token setting
PUBLISHED_LAYERS = {32: (3, 17, 22), 28: (3, 16, 22)}  # V2Drop's, by the decoder's depth


@dataclass(frozen=True, kw_only=True, eq=False)
class LayeredStage(LayerStage):
    """A cut of a `Layered` method, which says by the cut's index how many tokens it leaves.

    Attributes:
        method: The method.
        depth: Decoder layers.
        index: Of the cut, as the method's `left` counts them.
    """

    method: "Layered" = field(kw_only=False)
    depth: int = field(kw_only=False)
    index: int = field(kw_only=False)

    def left(self, arriving: Arriving) -> int:
        return min(self.method.left(self.depth, self.index, arriving), arriving.tokens)


class Layered(Budgeted):
    """Cuts before several decoder layers. Two settings, lists of one length, say where, and how much stays at each.

    A subclass names the first (`layers_setting`) and the second (the last of `schedule`), and defines the places that
    are usual, a cut's stage, and `solve`.
    """

    layers_setting: ClassVar[str] = "layers"
    usual_layers: ClassVar[tuple[int, ...]]
    """Those of the first setting in a decoder of 32 layers."""
    behind: ClassVar[int] = 0
    """How many layers each cut is behind these: 1 where they are layers that have run."""

    @abstractmethod
    def usual_at(self, depth: int) -> tuple[int, ...]:
        """The usual layers in a decoder of `depth` layers."""

    @abstractmethod
    def stage_at(self, depth: int, index: int, layer: int) -> LayerStage:
        """The cut of this index, before this layer."""

    def check_settings(self) -> None:
        layers, values = (getattr(self, name) for name in self._lists)
        if values is not None:
            self._check_lengths(self.usual_layers if layers is None else layers, values)

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return tuple(self.stage_at(shape.depth, index, layer) for index, layer in enumerate(self.cuts(shape.depth)))

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Decoder layers whose input is cut, in a decoder of `depth` layers."""
        layers: tuple[int, ...] | None = getattr(self, self.layers_setting)
        return tuple(layer + self.behind for layer in (self.usual_at(depth) if layers is None else layers))

    def values(self, depth: int, usual: Sequence[Any]) -> Sequence[Any]:
        """What is given for each cut, or the usual.

        Raises:
            SettingError: If it is not one for each cut: layers alone may be given only with a budget.
        """
        values = getattr(self, self.schedule[-1])
        values = usual if values is None else values
        self._check_lengths(self.cuts(depth), values)
        return values

    def left(self, depth: int, index: int, arriving: Arriving) -> int:
        """How many tokens the cut of this index leaves."""
        return int(self.counts(depth, arriving)[index])

    def in_ratio(self, shares: Sequence[float], depth: int, entered: int, started: int) -> tuple[int, ...]:
        """Whole tokens behind each cut, in the ratio of these shares, where the budget is met."""
        cuts = self.cuts(depth)
        return self.rounded(proportional(started, at_cuts(shares, len(cuts))), cuts, depth, entered, started)

    def falling(self, depth: int, entered: int, started: int, least: int = 1) -> tuple[int, ...]:
        """Counts behind each cut, each leaving one share of what arrives, and never fewer than `least`."""
        cuts = self.cuts(depth)
        return self.rounded(geometric(started, len(cuts), least), cuts, depth, entered, started)

    @property
    def _lists(self) -> tuple[str, str]:
        return self.layers_setting, self.schedule[-1]

    def _check_lengths(self, layers: Sequence[int], values: Sequence[Any]) -> None:
        first, second = self._lists
        if len(layers) != len(values):
            raise SettingError(
                f"{first} and {second} must have the same length; got {first}={layers}, {second}={values}."
            )


class Scheduled(Layered):
    """Cuts before given decoder layers, each keeping a share of the vision tokens that arrive there.

    A subclass defines how tokens are ranked (`scores`), or which ones are kept (`select`), and which signals it reads
    (`reads`).

    Attributes:
        layers: Decoder layers (0-based) whose input is cut, strictly ascending. None: the method's usual ones at the
            decoder's depth.
        keep: Share of the *arriving* vision tokens that each cut keeps, in [0, 1]. The ratios multiply: 0.5 then 0.3
            keeps 15 %. None: what a budget leaves, or the method's usual ratios.
        retention: Instead of `keep`: the mean share of the vision tokens that a decoder layer processes, in (0, 1]. The
            schedule is solved for every image.
        tokens: The same as a number of tokens.
        min_keep: Fewest tokens that a cut keeps. The released V2Drop keeps one token where its paper drops all.
        scope: Rank all vision tokens of a sample together ("sample"), each image or video separately ("image"), or each
            frame of a video separately ("frame").
    """

    first_layer: ClassVar[int] = 0
    """The earliest layer that may be cut."""
    usual_layers: ClassVar[tuple[int, ...]] = (3, 17, 22)
    """Where it cuts a decoder of 32 layers: V2Drop's 192-token setting for LLaVA-1.5-7B. A single one never moves."""
    usual_keep: ClassVar[tuple[float, ...]] = (0.5, 0.3, 0.0)
    """What it keeps at these, where neither `keep` nor a budget says it."""
    schedule = ("keep",)

    layers: Layers | None = None
    keep: Shares | None = None
    min_keep: Count = 1
    scope: Unit = "sample"

    def check_settings(self) -> None:
        super().check_settings()
        if self.layers and self.layers[0] < self.first_layer:
            raise SettingError(f"layers start at {self.first_layer} for this method; got {self.layers[0]}.")

    def scores(self, view: LayerView) -> Tensor:
        """A number for each token, (tokens,); the highest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(view) or select(view, count).")

    def select(self, view: LayerView, count: int) -> Tensor:
        """Which `count` tokens of `view` stay: (count,) int64 indices into it, ascending."""
        return top(self.scores(view), count)

    def reads(self, layer: int) -> tuple[Signal, ...]:
        """The signals that `select` reads before this layer."""
        return ()

    def usual_at(self, depth: int) -> tuple[int, ...]:
        if len(self.usual_layers) == 1:
            return self.usual_layers
        return at_depth(depth)

    def stage_at(self, depth: int, index: int, layer: int) -> LayerStage:
        # Where only scores are defined, the stage is given these.
        by_score = type(self).select is Scheduled.select
        return LayeredStage(
            layer,
            self,
            depth,
            index,
            reads=self.reads(layer),
            score=self.scores if by_score else None,
            pick=None if by_score else self.select,
            unit=self.scope,
            flops=None if type(self).rank_flops is Scheduled.rank_flops else partial(self._flops, depth, index),
        )

    def left(self, depth: int, index: int, arriving: Arriving) -> int:
        return self.kept(arriving.tokens, self.counts(depth, arriving)[index])

    def kept(self, tokens: int, ratio: float) -> int:
        """How many of `tokens` a cut with this ratio keeps: truncated, and never fewer than `min_keep`."""
        return keep_count(tokens, ratio, self.min_keep)

    def solve(self, depth: int, entered: int, started: int) -> tuple[float, ...]:
        """Keep ratios of all cuts: as given, or solved for what has entered."""
        if self.budget is None:
            return tuple(self.values(depth, self.usual_keep))
        # An earlier stage may have left fewer tokens than entered: the budget counts from those that entered.
        cuts, least = self.cuts(depth), min(self.min_keep, started)

        def curve(filled: float) -> list[float]:
            *early, last = accumulate(ratios(filled, len(cuts)), mul, initial=float(started))
            return [*early[1:], max(last, least)]

        return ratios(self.parameter(curve, cuts, depth, entered, started, least), len(cuts))

    def _flops(self, depth: int, index: int, arriving: Arriving, width: int) -> int:
        """FLOPs of ranking at a cut; none where all stay."""
        if self.left(depth, index, arriving) == arriving.tokens:
            return 0
        return self.rank_flops(arriving, width)

    def rank_flops(self, arriving: Arriving, width: int) -> int:
        """FLOPs of ranking what arrives; where a subclass does not say, nobody has counted them."""
        return 0


def ratios(filled: float, cuts: int) -> tuple[float, ...]:
    """What cuts keep of what arrives: the first what is solved for, the last nothing, the others 0.3.

    Where the first keeps all, the second keeps more than 0.3, and so on to the last: `filled`, in [0, 1], is how far
    that goes. Of three cuts 1/6 is 0.5, 0.3, 0; 1/2 is 1, 0.65, 0; and 5/6 is 1, 1, 0.5.
    """
    bases = [0.0, *[LATER_KEEP] * (cuts - 2), 0.0][:cuts]
    steps = [min(1.0, max(0.0, filled * cuts - cut)) for cut in range(cuts)]
    return tuple(base + (1 - base) * step for base, step in zip(bases, steps, strict=True))


def at_depth(depth: int) -> tuple[int, ...]:
    """V2Drop's cuts for a decoder of `depth` layers: 32 gives 3, 17, 22 and 28 gives 3, 16, 22.

    At other depths the first cut is at 3 (below twenty layers at 10 %), the others at 55 % and 72 %: 40 gives 3, 22,
    29.

    Raises:
        SettingError: If the decoder has fewer than four layers.
    """
    check_depth(depth)
    if depth in PUBLISHED_LAYERS:
        return PUBLISHED_LAYERS[depth]
    first = 3
    if depth < 20:
        first = max(1, round(0.1 * depth))
    second = max(first + 1, round(0.55 * depth))
    third = max(second + 1, round(0.72 * depth))
    return first, second, min(depth - 1, third)


class OneCut(Budgeted):
    """One cut before a decoder layer. A subclass says which tokens stay (`pick`), what it reads for that, and how many.

    Attributes:
        layer: The first layer that processes fewer tokens, 1 or more.
        keep: Share of the vision tokens; None: `usual_keep`.
        target: Instead of `keep`: a number of tokens.
        retention: Instead: the mean share of an image's tokens that a decoder layer processes.
        tokens: The same as a number of tokens.
        scope: Each "image" or video by itself, or each "frame".

    Raises:
        SettingError: If more than one of `keep`, `target` and a budget is given.
    """

    usual_keep: ClassVar[float]
    """The share that stays where nothing is said."""
    schedule: ClassVar[tuple[str, ...]] = ("keep", "target")

    layer: Annotated[int, Ge(1)]
    keep: Share | None = None
    target: Count | None = None
    scope: Literal["image", "frame"] = "image"

    def check_settings(self) -> None:
        if self.keep is not None and self.target is not None:
            raise SettingError(f"Give one of keep and target; got keep={self.keep}, target={self.target}.")

    @abstractmethod
    def reads(self) -> tuple[Signal, ...]:
        """The signals that `pick` reads."""

    @abstractmethod
    def pick(self, view: LayerView, count: int) -> Tensor:
        """Which `count` tokens of `view` stay: (count,) int64 indices into it, ascending."""

    def flops(self, arriving: Arriving, width: int) -> int:
        """FLOPs of its own arithmetic; where a subclass does not say, nobody has counted them."""
        return 0

    def stage(self, shape: Shape) -> Stage:
        return LayerStage(
            self.layer,
            reads=self.reads(),
            count=partial(self.count, shape.depth),
            pick=self.pick,
            unit=self.scope,
            flops=None if type(self).flops is OneCut.flops else self.flops,
        )

    @property
    def share(self) -> float:
        """What stays, where neither a number nor a budget says it."""
        if self.keep is None:
            return self.usual_keep
        return self.keep

    @abstractmethod
    def own_count(self, tokens: int) -> int:
        """How many of these tokens stay by `keep` or `target`."""

    def count(self, depth: int, arriving: Arriving) -> int:
        """How many tokens stay, in a decoder of `depth` layers."""
        if self.budget is None:
            return self.own_count(arriving.tokens)
        (left,) = self.counts(depth, arriving)
        return int(left)

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        """A mean of 192 with a cut before layer 2 of 32 leaves 166 of 576 tokens."""
        share = self.parameter(lambda share: [share * started], (self.layer,), depth, entered, started)
        return (min(started, max(1, half_up(share * started))),)


class Rated(Layered):
    """Cuts behind given decoder layers, each leaving a fixed number of an image's tokens: those that are rated highest.

    A subclass says which attention rates them (`rated`).

    Attributes:
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the code's
            (2, 6, 15) of 32 layers, and alike at other depths.
        targets: Tokens that each cut leaves.
        reference: Vision tokens of the image that these counts are for; scaled for images of another size.
        retention: Instead of the targets: the mean share of an image's tokens that a decoder layer processes. What the
            cuts leave is in the ratio of `usual_targets`.
        tokens: The same as a number of tokens.
        positions: See `Positions`.

    Raises:
        SettingError: If the lists differ in length.
    """

    rated: ClassVar[Attention]
    """The attention that rates tokens."""
    usual_targets: ClassVar[tuple[int, ...]]
    """Default of `targets`: the released setting that the authors call 192."""
    usual_layers = (2, 6, 15)
    layers_setting = "pruning_layers"
    behind = 1
    schedule = ("targets",)

    pruning_layers: Layers | None = None
    targets: Counts | None = None
    reference: Annotated[int, Ge(1)] = 576
    positions: Positions = "keep"

    def stage_at(self, depth: int, index: int, layer: int) -> LayerStage:
        reads, positions = (self.rated,), self.positions
        return LayeredStage(layer, self, depth, index, reads=reads, pick=highest, unit="image", positions=positions)

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """2, 6, 15 of 32 layers, and alike at other depths: 2, 5, 13 of 28."""
        check_depth(depth, least=6)
        first = max(0, min(2, depth // 4 - 1))
        second = max(first + 1, round(6 * depth / 32))
        return first, second, max(second + 1, round(15 * depth / 32))

    def solve(self, depth: int, entered: int, started: int) -> tuple[int, ...]:
        if self.budget is not None:
            return self.in_ratio(self.usual_targets, depth, entered, started)
        targets = self.values(depth, self.usual_targets)
        return tuple(target and max(1, half_up(target * entered / self.reference)) for target in targets)


def attended(view: LayerView) -> Tensor:
    """The attention that each token gets, as its score."""
    return view.attention


def highest(view: LayerView, count: int) -> Tensor:
    """The tokens with the most attention, (count,) int64, ascending; at even steps where there is no text to pay it."""
    if not view.text_behind:
        return spread(len(view), count, device=view.device)
    return top(view.attention, count)
