"""`Cuts`: base class of methods that drop tokens before one or more decoder layers."""

import warnings
from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from operator import mul
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from torch import Tensor

from foveate.contract.budget import Curve, at_cuts, check_depth, geometric, half_up, keep_count, proportional, solve
from foveate.contract.method import Method
from foveate.contract.settings import Count, Layers, Share, Shares, Tokens, Unit
from foveate.contract.stages import NO_FLOPS, LayerStage, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.rank import spread, top
from foveate.core.signals import Signal
from foveate.core.views import Arriving, LayerView
from foveate.errors import SettingError

USUAL_DEPTH = 32  # decoder layers for which `usual_layers` are written
LATER_KEEP = 0.3  # keep ratio of cuts between the first and the last: the middle ratio of V2Drop's 192-token setting
PUBLISHED_LAYERS = {32: (3, 17, 22), 28: (3, 16, 22)}  # V2Drop's layers, by decoder depth


class Cuts(Method):
    """Cuts before decoder layers. Each keeps some of the vision tokens that arrive there.

    A subclass writes `score` or `pick`, and sets the class attributes below. A method that ranks by attention only
    lists it in `reads` and writes neither. A subclass declares the settings of its paper; settings named `layers`,
    `keep`, `min_keep`, `scope` and `positions` take effect without further code.

    Attributes:
        layers: Decoder layers (0-based) whose input is cut, strictly ascending. None: the method's usual layers for the
            decoder's depth.
        keep: Share of the *arriving* vision tokens that each cut keeps, in [0, 1]. The ratios multiply: 0.5 then 0.3
            keeps 15 %. None: solved from the budget if one is given, else the method's usual ratios.
        retention: Instead of `keep`: the mean share of an image's vision tokens that a decoder layer processes, in
            (0, 1]. The token count of each cut is solved for every image.
        tokens: Instead of `keep`: that mean as a number of tokens.
        min_keep: Fewest tokens that a cut keeps. The released V2Drop keeps one token where its paper drops all.
        scope: Rank all vision tokens of a sample together ("sample"), each image or video separately ("image"), or each
            frame of a video separately ("frame").

    Raises:
        SettingError: If `layers` and the keep ratios differ in length.
    """

    usual_layers: ClassVar[tuple[int, ...]] = (3, 17, 22)
    """Layers cut in a decoder of 32 layers, scaled to other depths; see `usual_at`. By default V2Drop's."""
    usual_keep: ClassVar[Any] = (0.5, 0.3, 0.0)
    """Default values of the first setting in `schedule`, one per layer: usually keep ratios."""
    first_layer: ClassVar[int] = 0
    """Earliest layer that may be cut. A method that reads the previous layer cannot cut before layer 1 anyway."""
    unit: ClassVar[Unit] = "sample"
    """Which tokens are ranked together if the method has no setting `scope`."""
    layers_setting: ClassVar[str] = "layers"
    """Name of the setting that gives the layer or layers."""
    behind: ClassVar[int] = 0
    """Offset from these layers to the cuts: 1 if the setting names the layer after which tokens are cut."""
    falls: ClassVar[Literal["v2drop", "geometric", "proportional"]] = "v2drop"
    """How a budget is spread over the cuts: V2Drop's ratios, the same ratio at each cut, or counts in the ratio of
    `usual_keep`."""
    whole_at: ClassVar[tuple[str, float]] = ("retention", 1)
    """A setting, and its value, at which every token of every image stays."""
    schedule: ClassVar[tuple[str, ...]] = ("keep",)
    reads: ClassVar[tuple[Signal, ...]] = ()
    """Signals that `score` or `pick` reads: `reads = (Hidden(),)`. A property where they depend on settings."""

    retention: Share | None = None
    tokens: Tokens | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if callable(vars(cls).get("flops")):
            message = f"Leave {cls.__name__}.flops out. {NO_FLOPS}."
            warnings.warn(message, DeprecationWarning, stacklevel=3)  # past ABCMeta

    def score(self, view: LayerView, layer: int) -> Tensor:
        """Score each token before this layer, (tokens,). The highest stay. Default: the attention in `reads`."""
        return view.attention

    def pick(self, view: Any, count: int) -> Tensor | Cut:
        """Pick the `count` tokens of `view` that stay: ascending indices, (count,) int64, or a cut, which may merge."""
        raise NotImplementedError

    def usual_at(self, depth: int) -> tuple[int, ...]:
        """Return the usual layers for a decoder of `depth` layers, in proportion, strictly ascending.

        (8, 20) of 32 layers are (4, 10) of 16. None cuts before `first_layer`. V2Drop's own have a rule: `at_depth`.

        Raises:
            SettingError: If the decoder has too few layers.
        """
        return self.scaled(self.usual_layers, depth)

    def scaled(self, usual: tuple[int, ...], depth: int, least: int = 0) -> tuple[int, ...]:
        """Return `usual_at` for other layers of a decoder of 32. None is before layer `least`."""
        bounds = (-1, *usual, USUAL_DEPTH)
        if any(after <= before for before, after in pairwise(bounds)):
            raise SettingError(
                f"{type(self).__name__}: usual_layers must ascend strictly from 0 to {USUAL_DEPTH - 1}, as in a "
                f"decoder of {USUAL_DEPTH} layers; got {usual}."
            )
        cuts, first, end = len(usual), max(least, self.earliest - self.behind), depth - self.behind
        if end - first < cuts:
            raise SettingError(
                f"{type(self).__name__} has {cuts} cuts, none before layer {first + self.behind}, so it needs a "
                f"decoder of {first + self.behind + cuts} layers or more; got {depth}."
            )
        in_ratio = at_depth(depth) if usual == Cuts.usual_layers else [layer * depth / USUAL_DEPTH for layer in usual]
        layers: list[int] = []
        for place, layer in enumerate(in_ratio):
            layers.append(min(max(round(layer), first), end - cuts + place))
            first = layers[-1] + 1
        return tuple(layers)

    def solve(self, depth: int, entered: int, started: int) -> tuple[Any, ...]:
        """Compute what stays at each cut.

        Args:
            depth: Decoder layers.
            entered: Vision tokens that entered the model.
            started: How many of them reach the decoder.

        Returns:
            One value per cut: an int is a number of tokens, a float a share of the arriving tokens.

        Raises:
            BudgetError: If the budget cannot be met; the message names the floor.
            SettingError: If there is no budget, and cuts and keep ratios differ in number.
        """
        if self.budget is None:
            return tuple(self.left_by(value, entered, started) for value in self.values(depth))
        # An earlier stage may already have dropped tokens. The budget is relative to those that entered.
        cuts, least = len(self.cuts(depth)), min(getattr(self, "min_keep", 1), started)
        if self.falls == "geometric":
            return self.counts(geometric(started, cuts, least), depth, entered, started, least)
        if self.falls == "proportional":
            shares = at_cuts(self.usual_keep, cuts)
            return self.counts(proportional(started, shares, least), depth, entered, started, least)

        def curve(filled: float) -> list[float]:
            *early, last = accumulate(ratios(filled, cuts), mul, initial=float(started))
            return [*early[1:], max(last, least)]

        return ratios(self.parameter(curve, depth, entered, started, least), cuts)

    def left_by(self, value: Any, entered: int, started: int) -> float | int:
        """Return what stays by one of `values`: by default that share of the arriving tokens. See `solve`."""
        return float(value)

    def count(self, depth: int, index: int, arriving: Arriving) -> int:
        """Return how many tokens the cut at `index` leaves."""
        stays = self.solution(depth, arriving)[index]
        if isinstance(stays, int):
            return stays
        return self.share_of(arriving.tokens, stays)

    def share_of(self, tokens: int, share: float) -> int:
        """Return this share of `tokens`, truncated, and at least `min_keep`."""
        return keep_count(tokens, share, getattr(self, "min_keep", 1))

    # -- derived from the above --------------------------------------------------------------------------------

    @property
    def _unit(self) -> Unit:
        scope: Unit = getattr(self, "scope", self.unit)
        return scope

    @property
    def keeps_all(self) -> bool:
        """Whether every token of every image stays, in which case no stage is needed."""
        setting, value = self.whole_at
        return self.retention == 1 or getattr(self, setting, None) == value

    @property
    def earliest(self) -> int:
        """Earliest layer that can be cut: `first_layer`, or later if `reads` looks further back."""
        return max([self.first_layer, *(signal.layers_back for signal in self.reads if isinstance(signal, Signal))])

    def check_settings(self) -> None:
        self._check_earliest()
        layers, values = getattr(self, self.layers_setting, None), getattr(self, self.schedule[0], None)
        if isinstance(values, tuple) and self.layers_setting != "layer":
            self._check_lengths(self.usual_layers if layers is None else layers, values)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        return self.steps(shape)

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        """Return the stages that may drop tokens."""
        self._check_earliest()  # `check_settings` may be overridden
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
            )
            stages.append(stage)
        return tuple(stages)

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Return the decoder layers whose input is cut, in a decoder of `depth` layers."""
        layers = getattr(self, self.layers_setting, None)
        if layers is None:
            layers = self.usual_at(depth)
        elif isinstance(layers, int):
            layers = (layers,)
        return tuple(layer + self.behind for layer in layers)

    def solution(self, depth: int, arriving: Arriving) -> tuple[Any, ...]:
        """Return `solve` for this image, cached."""
        return _solve_once(self, depth, arriving.entered, arriving.started)

    def check_floor(self, depth: int, entered: int) -> None:
        if self.budget is not None and not self.keeps_all:
            self.solution(depth, Arriving.all_of(entered))

    def values(self, depth: int) -> Sequence[Any]:
        """Return the setting's value for each cut, or the usual values.

        Raises:
            SettingError: If their number is not the number of cuts. Giving only layers requires a budget.
        """
        values: Sequence[Any] | float | None = getattr(self, self.schedule[0], None)
        if values is None:
            values = self.usual_keep
        if isinstance(values, int | float):
            values = (values,)
        self._check_lengths(self.cuts(depth), values)
        return values

    def parameter(self, curve: Curve, depth: int, entered: int, started: int, least: float = 1) -> float:
        """Return the curve's parameter that meets the budget; see `foveate.contract.budget.solve`."""
        assert self.budget is not None
        mean = self.budget.mean(entered)
        return solve(curve, self.cuts(depth), depth, mean, entered, started, type(self).__name__, least)

    def counts(self, curve: Curve, depth: int, entered: int, started: int, least: float = 1) -> tuple[int, ...]:
        """Return the number of tokens after each cut at which the curve meets the budget.

        A mean of 192 with one cut, before layer 2 of 32, leaves 166 of 576 tokens.
        """
        return tuple(map(half_up, curve(self.parameter(curve, depth, entered, started, least))))

    def _check_earliest(self) -> None:
        layers = getattr(self, self.layers_setting, None)
        first = layers[0] if isinstance(layers, tuple) and layers else layers
        if isinstance(first, int) and first + self.behind < self.earliest:
            raise SettingError(
                f"{type(self).__name__}: {self.layers_setting} must be {self.earliest - self.behind} or later for this "
                f"method; got {first}."
            )

    def _check_lengths(self, layers: Sequence[int], values: Sequence[Any]) -> None:
        first, second = self.layers_setting, self.schedule[0]
        if len(layers) != len(values):
            raise SettingError(
                f"{type(self).__name__}: {first} and {second} must have the same length; got {first}={layers}, "
                f"{second}={values}."
            )


class ManyCuts(Cuts):
    """Cuts before any layers, each with a keep ratio of its own. For the settings see `Cuts`."""

    layers: Layers | None = None
    keep: Shares | None = None
    min_keep: Count = 1
    scope: Unit = "sample"


class OneCut(Cuts):
    """One cut, before layer 1 or later, set by a share, a number of tokens, or a budget.

    Attributes:
        layer: The first layer that processes fewer tokens, 1 or more.
        keep: Share of the arriving tokens that stays.
        target: Instead of `keep`: the number of tokens that stay.
        scope: Rank each "image" or video separately, or each "frame".
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
    """Return the keep ratio of each cut. At `filled` = 0 the first and last keep nothing, the others 0.3.

    As `filled` grows to 1, the ratios rise to 1 one after the other, from the first cut to the last. With three cuts,
    1/6 gives 0.5, 0.3, 0; 1/2 gives 1, 0.65, 0; and 5/6 gives 1, 1, 0.5.
    """
    bases = [0.0, *[LATER_KEEP] * (cuts - 2), 0.0][:cuts]
    steps = [min(1.0, max(0.0, filled * cuts - cut)) for cut in range(cuts)]
    return tuple(base + (1 - base) * step for base, step in zip(bases, steps, strict=True))


def at_depth(depth: int) -> tuple[int, ...]:
    """Return V2Drop's cuts for a decoder of `depth` layers: 32 gives 3, 17, 22 and 28 gives 3, 16, 22.

    At other depths the cuts are at 3 (at 10 % of the depth below 20 layers), 55 % and 72 %. 40 gives 3, 22, 29.

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
    """Return the attention that each token receives, as its score."""
    return view.attention


def highest(view: LayerView, count: int) -> Tensor:
    """Pick the tokens with the most attention, or evenly spaced ones if no text attends: (count,) int64, ascending."""
    if not view.text_behind:
        return spread(len(view), count, device=view.device)
    return top(view.attention, count)
