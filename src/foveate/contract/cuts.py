"""`Cuts`: what methods share that drop before decoder layers, at one or at several."""

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate
from operator import mul
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from foveate.contract.budget import Curve, at_cuts, check_depth, geometric, half_up, keep_count, proportional, solve
from foveate.contract.method import Method
from foveate.contract.settings import Count, Share, Tokens, Unit
from foveate.contract.stages import LayerStage, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.rank import spread, top
from foveate.core.signals import Signal
from foveate.core.views import Arriving, LayerView
from foveate.errors import SettingError

LATER_KEEP = 0.3  # what cuts between the first and the last keep: the middle ratio of V2Drop's 192-token setting
PUBLISHED_LAYERS = {32: (3, 17, 22), 28: (3, 16, 22)}  # V2Drop's, by the decoder's depth


class Cuts(Method):
    """Cuts before decoder layers, each of which leaves some of the vision tokens that arrive there.

    A subclass writes `score`, or `pick`, and says below what it reads and where it usually cuts; one that ranks by
    attention reads it, and writes neither. It has the settings that its paper has: of those named `layers` and `keep`,
    `min_keep`, `scope` and `positions` nothing more need be said.

    Attributes:
        layers: Decoder layers (0-based) whose input is cut, strictly ascending. None: the method's usual ones at the
            decoder's depth.
        keep: Share of the *arriving* vision tokens that each cut keeps, in [0, 1]. The ratios multiply: 0.5 then 0.3
            keeps 15 %. None: what a budget leaves, or the method's usual ratios.
        retention: Instead of `keep`: the mean share of an image's vision tokens that a decoder layer processes, in
            (0, 1]. How many each cut leaves is solved for every image.
        tokens: The same as a number of tokens.
        min_keep: Fewest tokens that a cut keeps. The released V2Drop keeps one token where its paper drops all.
        scope: Rank all vision tokens of a sample together ("sample"), each image or video separately ("image"), or each
            frame of a video separately ("frame").

    Raises:
        SettingError: If layers and what stays at each differ in length.
    """

    usual_layers: ClassVar[tuple[int, ...]] = (3, 17, 22)
    """Where it cuts a decoder of 32 layers: V2Drop's 192-token setting for LLaVA-1.5-7B. A single one never moves."""
    usual_keep: ClassVar[Any] = (0.5, 0.3, 0.0)
    """What stays at these, where no setting says it: shares, or whatever else the first of `schedule` is."""
    first_layer: ClassVar[int] = 0
    """The earliest layer that may be cut."""
    unit: ClassVar[Unit] = "sample"
    """What is ranked together, where there is no setting `scope`."""
    layers_setting: ClassVar[str] = "layers"
    """The setting that says where: a layer, or several."""
    behind: ClassVar[int] = 0
    """How many layers each cut is behind these: 1 where they are layers that have run."""
    falls: ClassVar[Literal["v2drop", "geometric", "proportional"]] = "v2drop"
    """What cuts leave where a budget is given: shares as V2Drop's are; one share of what arrives at each; or counts in
    the ratio of `usual_keep`."""
    whole_at: ClassVar[tuple[str, float]] = ("retention", 1)
    """A setting at which every token of every image stays, and its value there."""
    schedule: ClassVar[tuple[str, ...]] = ("keep",)

    retention: Share | None = None
    tokens: Tokens | None = None

    @property
    def reads(self) -> tuple[Signal, ...]:
        """The signals that `score` or `pick` reads: most methods say `reads = (Hidden(),)`."""
        return ()

    def score(self, view: LayerView, layer: int) -> Tensor:
        """A number for each token before this layer, (tokens,); the highest stay. Usually the attention in `reads`."""
        return view.attention

    def pick(self, view: Any, count: int) -> Tensor | Cut:
        """Which `count` tokens of `view` stay: (count,) int64 indices into it, ascending; or a cut, which may merge."""
        raise NotImplementedError

    def flops(self, arriving: Arriving, width: int) -> int:
        """FLOPs of ranking what arrives; where a subclass does not say, nobody has counted them."""
        return 0

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """The usual layers in a decoder of `depth` layers."""
        if len(self.usual_layers) == 1:
            return self.usual_layers
        return at_depth(depth)

    def solve(self, depth: int, entered: int, started: int) -> tuple[Any, ...]:
        """What stays at each cut, of `entered` vision tokens of which `started` reach the decoder.

        Whole numbers are tokens; others, as here, shares of what arrives.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
            SettingError: If as many cuts are given as something else, without a budget.
        """
        if self.budget is None:
            return tuple(map(float, self.values(depth)))
        # An earlier stage may have left fewer tokens than entered: the budget counts from those that entered.
        cuts, least = len(self.cuts(depth)), min(getattr(self, "min_keep", 1), started)
        if self.falls == "geometric":
            return self.counts(geometric(started, cuts), depth, entered, started)
        if self.falls == "proportional":
            return self.counts(proportional(started, at_cuts(self.usual_keep, cuts)), depth, entered, started)

        def curve(filled: float) -> list[float]:
            *early, last = accumulate(ratios(filled, cuts), mul, initial=float(started))
            return [*early[1:], max(last, least)]

        return ratios(self.parameter(curve, depth, entered, started, least), cuts)

    def count(self, depth: int, index: int, arriving: Arriving) -> int:
        """How many tokens the cut of this index leaves."""
        stays = self.solution(depth, arriving)[index]
        if isinstance(stays, int):
            return stays
        return self.share_of(arriving.tokens, stays)

    def share_of(self, tokens: int, share: float) -> int:
        """This share of so many tokens: truncated, and never fewer than `min_keep`."""
        return keep_count(tokens, share, getattr(self, "min_keep", 1))

    # -- what follows from these -------------------------------------------------------------------------------

    @property
    def _unit(self) -> Unit:
        scope: Unit = getattr(self, "scope", self.unit)
        return scope

    @property
    def keeps_all(self) -> bool:
        """Whether every token of every image stays, so that no stage is needed."""
        setting, value = self.whole_at
        return self.retention == 1 or getattr(self, setting, None) == value

    def check_settings(self) -> None:
        if self.layers_setting == "layer":
            return
        layers = getattr(self, self.layers_setting, None)
        if layers and layers[0] < self.first_layer:
            raise SettingError(f"{self.layers_setting} start at {self.first_layer} for this method; got {layers[0]}.")
        values = getattr(self, self.schedule[0], None)
        if values is not None:
            self._check_lengths(self.usual_layers if layers is None else layers, values)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        return self.steps(shape)

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        """The stages where a token may leave."""
        stages = []
        for index, layer in enumerate(self.cuts(shape.depth)):
            by_score = type(self).pick is Cuts.pick
            stage = LayerStage(
                layer,
                reads=self.reads,
                count=partial(self.count, shape.depth, index),
                score=partial(self.score, layer=layer) if by_score else None,
                pick=None if by_score else self.pick,
                unit=self._unit,
                positions=getattr(self, "positions", "keep"),
                flops=None if type(self).flops is Cuts.flops else partial(self._flops, shape.depth, index),
            )
            stages.append(stage)
        return tuple(stages)

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Decoder layers whose input is cut, in a decoder of `depth` layers."""
        layers = getattr(self, self.layers_setting, None)
        if layers is None:
            layers = self.usual_at(depth)
        if isinstance(layers, int):
            layers = (layers,)
        return tuple(layer + self.behind for layer in layers)

    def solution(self, depth: int, arriving: Arriving) -> tuple[Any, ...]:
        """`solve` of such an image, once."""
        return _solve_once(self, depth, arriving.entered, arriving.started)

    def check_floor(self, depth: int, entered: int) -> None:
        if self.budget is not None and not self.keeps_all:
            self.solution(depth, Arriving.all_of(entered))

    def values(self, depth: int) -> Sequence[Any]:
        """What a setting says of each cut, or the usual.

        Raises:
            SettingError: If it is not one for each cut: layers alone may be given only with a budget.
        """
        values: Sequence[Any] | float | None = getattr(self, self.schedule[0], None)
        if values is None:
            values = self.usual_keep
        if isinstance(values, float):
            return (values,)
        self._check_lengths(self.cuts(depth), values)
        return values

    def parameter(self, curve: Curve, depth: int, entered: int, started: int, least: float = 1) -> float:
        """Where on a curve the budget is met; see `foveate.contract.budget.solve`."""
        assert self.budget is not None
        mean = self.budget.mean(entered)
        return solve(curve, self.cuts(depth), depth, mean, entered, started, type(self).__name__, least)

    def counts(self, curve: Curve, depth: int, entered: int, started: int) -> tuple[int, ...]:
        """Whole tokens behind each cut, where on a curve the budget is met.

        A mean of 192 with one cut, before layer 2 of 32, leaves 166 of 576 tokens.
        """
        return tuple(map(half_up, curve(self.parameter(curve, depth, entered, started))))

    def _flops(self, depth: int, index: int, arriving: Arriving, width: int) -> int:
        """FLOPs of ranking at a cut; none where all of a sample stay."""
        if self._unit == "sample" and self.count(depth, index, arriving) >= arriving.tokens:
            return 0
        return self.flops(arriving, width)

    def _check_lengths(self, layers: Sequence[int], values: Sequence[Any]) -> None:
        first, second = self.layers_setting, self.schedule[0]
        if len(layers) != len(values):
            raise SettingError(
                f"{first} and {second} must have the same length; got {first}={layers}, {second}={values}."
            )


class OneCut(Cuts):
    """Cuts once, at a layer from 1 on, and takes a share, a number of tokens, or a budget.

    Attributes:
        layer: The first layer that processes fewer tokens, 1 or more.
        keep: Share of the arriving tokens that stays.
        target: Instead of `keep`: a number of tokens.
        scope: Each "image" or video by itself, or each "frame".
        retention, tokens: See `Cuts`.
    """

    layers_setting = "layer"
    falls = "geometric"
    schedule: ClassVar[tuple[str, ...]] = ("keep", "target")
    only_one = True

    layer: Annotated[int, Ge(1)] = 2
    keep: Share | None = None
    target: Count | None = None
    scope: Literal["image", "frame"] = "image"


@lru_cache(maxsize=1024)
def _solve_once(method: Cuts, depth: int, entered: int, started: int) -> tuple[Any, ...]:
    return method.solve(depth, entered, started)


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


def attended(view: LayerView) -> Tensor:
    """The attention that each token gets, as its score."""
    return view.attention


def highest(view: LayerView, count: int) -> Tensor:
    """The tokens with the most attention, (count,) int64, ascending; at even steps where there is no text to pay it."""
    if not view.text_behind:
        return spread(len(view), count, device=view.device)
    return top(view.attention, count)
