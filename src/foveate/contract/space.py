"""What of a method may be searched: cut layers, the tokens behind them, and settings, each in its range.

A method may declare `searched`, settings with their values, the usual one first (the first two make the small grid),
and `space(depth)`, where more than these and the place of a single cut can be searched.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from foveate.contract.follow import cut_layers
from foveate.contract.method import Chain, Method
from foveate.contract.stages import Shape

MOST_CUTS = 6
SHARES = (None, 0.5, 0.35, 0.25, 0.18, 0.125)
"""What an earlier member of a chain may keep when a chain is tuned; None is what it keeps by itself."""
Build = Callable[[tuple[int, ...], Sequence[float], int, Mapping[str, Any]], Method]


@dataclass(frozen=True, slots=True)
class Point:
    """One place in a space, without its cost: how many tokens stay is solved for.

    Attributes:
        layers: Decoder layers whose input is cut, ascending.
        shape: The tokens behind each cut as a share of those behind the first, from 1 down. Where a space counts what
            enters the decoder, that comes before the cuts.
        settings: (name, value) pairs.
    """

    layers: tuple[int, ...]
    shape: tuple[float, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The settings by name."""
        return dict(self.settings)


@dataclass(frozen=True, kw_only=True)
class Space:
    """What may be searched of one method on one depth.

    Attributes:
        build: The method with these layers, tokens behind each cut (of an image with so many vision tokens: the third
            argument) and settings. It raises a SettingError where they contradict each other.
        depth: Decoder layers.
        first: The earliest layer that may be cut.
        most_cuts: The most cuts; 0 where the method has no layers of its own to choose.
        counts_entry: Whether one more number, of the tokens that enter the decoder, comes before those of the cuts.
        solved_for: What these numbers are: "tokens", whole ones behind each cut; a "mean" over the layers; or a
            "threshold", where what a setting keeps depends on the picture, so that its cost is known by running it. The
            number is then the threshold's reciprocal: the larger it is, the more stays.
        settings: The values of each setting, the usual one first. The first two settings are those of the small grid.
        fixed: Layers that are cut, where somebody has chosen them; empty where they are searched.
        member: Of a chain, the place of the member whose cuts these are.
    """

    build: Build
    depth: int
    first: int = 0
    most_cuts: int = MOST_CUTS
    counts_entry: bool = False
    solved_for: Literal["tokens", "mean", "threshold"] = "tokens"
    settings: Mapping[str, tuple[Any, ...]]
    fixed: tuple[int, ...] = ()
    member: int | None = None

    @property
    def usual(self) -> tuple[tuple[str, Any], ...]:
        """Every setting at its usual value."""
        return tuple((name, values[0]) for name, values in self.settings.items())

    def first_cuts(self) -> tuple[int, ...]:
        """First cuts of the small grid: the three earliest layers, from layer 1 on."""
        if not self.most_cuts or self.fixed:
            return ()
        start = max(1, self.first)
        return tuple(layer for layer in range(start, start + 3) if layer < self.depth)

    def grid_settings(self) -> list[tuple[tuple[str, Any], ...]]:
        """Settings of the small grid: every pair of values of the first two, all others usual."""
        names = list(self.settings)[:2]
        chosen = []
        for values in itertools.product(*(self.settings[name] for name in names)):
            changed = {**dict(self.usual), **dict(zip(names, values, strict=True))}
            chosen.append(tuple(changed.items()))
        return chosen

    def without(self, given: Collection[str], fixed: tuple[int, ...] = ()) -> "Space":
        """This space without the settings of these names, and with these layers, if any: somebody has chosen them."""
        settings = {name: values for name, values in self.settings.items() if name not in given}
        return replace(self, settings=settings, fixed=fixed)

    def point_of(
        self,
        plan: Sequence[int],
        entered: int,
        settings: tuple[tuple[str, Any], ...],
        cuts: Collection[int] | None = None,
    ) -> Point | None:
        """The point whose layers process so many tokens each; None where the space has no such point.

        576, 576, 576, 33, 33, … is a cut before layer 3.

        Args:
            plan: Vision tokens of each layer.
            entered: Tokens before layer 0.
            settings: The point's settings.
            cuts: Layers whose cuts count; None is all. Others are those of another member of a chain.
        """
        layers: list[int] = []
        counts: list[int] = [plan[0]] if self.counts_entry else []
        before = plan[0] if self.counts_entry else entered
        for layer, count in enumerate(plan):
            if count != before and (cuts is None or layer in cuts):
                layers.append(layer)
                counts.append(count)
            before = count
        if not self.most_cuts:
            layers, counts = [], counts[:1]
        if not counts or len(layers) > self.most_cuts or (layers and layers[0] < self.first):
            return None
        return Point(tuple(layers), tuple(count / counts[0] for count in counts), settings)


def space_of(method: Method, depth: int) -> Space | None:
    """What may be searched of a method, in a decoder of `depth` layers; None where nothing can be.

    A setting that differs from the method's usual one was chosen by somebody, and stays.
    """
    if isinstance(method, Chain):
        return _of_chain(method, depth)
    if hasattr(method, "space"):
        space: Space | None = method.space(depth)
        return space
    if not hasattr(method, "retention"):
        return None
    settings = free_settings(method)
    cuts = cut_layers(method.stages(Shape(depth)))
    if cuts and "layer" in _usual_settings(method):
        settings["layer"] = (cuts[0], *(layer for layer in range(1, depth // 2) if layer != cuts[0]))
    build = partial(_with_mean, method)
    return Space(build=build, depth=depth, most_cuts=0, counts_entry=True, solved_for="mean", settings=settings)


def free_settings(method: Method) -> dict[str, tuple[Any, ...]]:
    """The settings in `searched` that nobody has chosen."""
    usual = _usual_settings(method)
    return {name: values for name, values in getattr(method, "searched", {}).items() if name in usual}


def _usual_settings(method: Method) -> set[str]:
    """The settings that are as they are by default."""
    every = fields(method)  # type: ignore[arg-type]
    return {field.name for field in every if getattr(method, field.name) == field.default}


def _with_mean(
    method: Method, layers: tuple[int, ...], counts: Sequence[float], entered: int, settings: Mapping[str, Any]
) -> Method:
    """The method with a mean of `counts[0]` of `entered` tokens."""
    changed = replace(method, **settings)  # type: ignore[type-var]
    return changed.with_budget(retention=min(1.0, counts[0] / entered))


# -- of chains --------------------------------------------------------------------------------------------------------


def _of_chain(chain: Chain, depth: int) -> Space | None:
    """The members' spaces as one: the last that has one spends the budget.

    Settings are named by their member's place, "1.metric"; an earlier member's share of the tokens is one of them.
    """
    spaces = [space_of(member, depth) for member in chain.members]
    places = [place for place, space in enumerate(spaces) if space is not None and space.solved_for != "threshold"]
    if not places:
        return None
    last = places[-1]
    settings: dict[str, tuple[Any, ...]] = {}
    for place, (member, space) in enumerate(zip(chain.members, spaces, strict=True)):
        own = free_settings(member) if space is None else {}  # it drops nothing, but has something to choose
        if space is not None and place in places:
            own = {**({"retention": SHARES} if place != last and member.open else {}), **space.settings}
        for name, values in own.items():
            settings[f"{place}.{name}"] = values
    spending = spaces[last]
    assert spending is not None
    build = partial(_joined, chain, spending, last, depth)
    return replace(spending, build=build, settings=settings, member=last)


def _joined(
    chain: Chain,
    spending: Space,
    last: int,
    depth: int,
    layers: tuple[int, ...],
    counts: Sequence[float],
    entered: int,
    settings: Mapping[str, Any],
) -> Chain:
    """This chain with its member at place `last` built in its space, and the others' settings changed."""
    own: list[dict[str, Any]] = [{} for _ in chain.members]
    for name, value in settings.items():
        number, _, setting = name.partition(".")
        own[int(number)][setting] = value
    members = []
    for place, (member, values) in enumerate(zip(chain.members, own, strict=True)):
        share = values.pop("retention", None)
        if place != last:
            member = replace(member, **values)  # type: ignore[type-var]
        if share is not None:
            member = member.with_budget(retention=share)
        members.append(member)
    arriving = _arriving(members[:last], depth, entered)
    counts = [min(count, arriving) for count in counts]
    members[last] = spending.build(layers, counts, arriving, own[last])
    return type(chain)(members=tuple(members))


def _arriving(earlier: Sequence[Method], depth: int, entered: int) -> int:
    """Tokens that earlier members leave of an image that enters with so many."""
    left = entered
    for member in earlier:
        plan = member.plan(depth, [left])
        if plan is not None:
            left = plan[0]
    return left
