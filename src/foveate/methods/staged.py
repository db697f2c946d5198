"""What V2Drop, Random and Uniform share: cuts before given layers, each keeping a share of what arrives."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from foveate.core.budget import keep_count, mean_tokens
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Cut, Method, View, as_layers, decoder_depth, keep_each, share

__all__ = ["Scope", "StagedMethod", "default_layers"]

Scope = Literal["sample", "image", "frame"]
MIN_KEEP = 1  # the released V2Drop keeps one token where its paper prunes all
SECOND_KEEP = 0.3  # the middle ratio of the paper's 192-token setting, which solved schedules start from


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedMethod(Method):
    """Cuts before given decoder layers, each keeping a share of the vision tokens that arrive there.

    Attributes:
        layers: Decoder layers (0-based) whose input is cut, strictly ascending.
        keep: Share of the *arriving* vision tokens that stays at each, in [0, 1]; ratios compound.
        min_keep: Fewest tokens a cut leaves.
        scope: Rank all vision tokens of a sample together ("sample"), each image or video by itself ("image"), or each
            frame of a video too ("frame").
        skip_below: Samples with fewer vision tokens than this are left whole; 0 switches that off.

    Raises:
        SettingError: If `layers` and `keep` differ in length or leave their range.
    """

    first_layer: ClassVar[int] = 0

    layers: tuple[int, ...]
    keep: tuple[float, ...]
    min_keep: int = MIN_KEEP
    scope: Scope = "sample"
    skip_below: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_layers(self.layers))
        object.__setattr__(self, "keep", tuple(float(ratio) for ratio in self.keep))
        if len(self.layers) != len(self.keep):
            raise SettingError(
                f"layers and keep must be equally long; got {len(self.layers)} layers {self.layers} "
                f"and {len(self.keep)} ratios {self.keep}."
            )
        if self.layers and self.layers[0] < self.first_layer:
            raise SettingError(f"layers start at {self.first_layer} for this method; got {self.layers[0]}.")
        if any(not 0 <= ratio <= 1 for ratio in self.keep):
            raise SettingError(f"keep ratios are shares in [0, 1]; got {self.keep}.")
        if self.min_keep < 0 or self.skip_below < 0:
            raise SettingError(
                f"min_keep and skip_below cannot be negative; got {self.min_keep} and {self.skip_below}."
            )
        if self.scope not in ("sample", "image", "frame"):
            raise SettingError(f"scope is 'sample', 'image' or 'frame'; got {self.scope!r}.")

    @abstractmethod
    def select(self, view: View, count: int) -> Tensor:
        """Which `count` tokens of `view` stay: (count,) int64 indices into it, ascending."""

    @property
    def by_frame(self) -> bool:
        return self.scope == "frame"

    def cuts(self) -> tuple[int, ...]:
        return self.layers

    def cut(self, view: View) -> Cut | None:
        if view.entered < self.skip_below:
            return None
        ratio = self.keep[self.layers.index(view.layer)]
        if self.scope != "sample" and view.sizes is not None:
            return self._cut_each_image(view, ratio)
        count = keep_count(len(view), ratio, self.min_keep)
        if count == len(view):
            return None
        only_image = view.sizes is not None and len(view.sizes) == 1
        return Cut(self.select(view, count), sizes=(count,) if only_image else None)

    def _cut_each_image(self, view: View, ratio: float) -> Cut | None:
        assert view.sizes is not None
        counts = keep_each(view.sizes, ratio, self.min_keep)
        if counts == view.sizes:
            return None
        kept, start = [], 0
        for size, count in zip(view.sizes, counts, strict=True):
            kept.append(start + self.select(view.part(start, start + size), count))
            start += size
        return Cut(torch.cat(kept), sizes=counts)

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...]:
        groups = (sum(sizes),) if self.scope == "sample" else tuple(sizes)
        ratios = dict(zip(self.layers, self.keep, strict=True)) if sum(sizes) >= self.skip_below else {}
        counts = []
        for layer in range(depth):
            if layer in ratios:
                groups = keep_each(groups, ratios[layer], self.min_keep)
            counts.append(sum(groups))
        return tuple(counts)

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        layers: Sequence[int] | None = None,
        **settings: Any,
    ) -> Self:
        """The three-cut schedule whose mean over decoder layers meets a budget; or the single cut, if `layers` has one.

        The last cut leaves `min_keep`, the second keeps 30 % of what arrives, the first is solved for; if
        that does not suffice, the second keeps more, then the cuts move later.

            Uniform.for_budget(model, tokens=192, layers=(0,))     # before the decoder: any budget from one token on

        Args:
            model: A model or its config, for its depth (four layers or more).
            tokens: Mean vision tokens a layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            layers: Three cuts, instead of those for the depth, or one. An earlier first cut lowers the floor.
            settings: Other settings of the method.

        Raises:
            BudgetError: If the budget lies below what the first cut allows; the message names the floor.
            SettingError: If the budget is contradictory or the decoder has fewer than four layers.
        """
        target, count = share(model, tokens, retention, vision_tokens)
        depth = decoder_depth(model)
        cuts = default_layers(depth) if layers is None else as_layers(layers)
        if len(cuts) not in (1, 3):
            raise SettingError(f"A solved schedule has three cuts, or one; got layers {cuts}.")
        if target == 1:
            return cls(layers=cuts, keep=(1.0,) * len(cuts), **settings)
        solve = _Solver(depth, target, count, settings.get("min_keep", MIN_KEEP), cls.__name__)
        cuts, keep = solve(cuts)
        return cls(layers=cuts, keep=keep, **settings)


def default_layers(depth: int) -> tuple[int, int, int]:
    """V2Drop's cuts for a decoder of `depth` layers: 32 gives 3, 17, 22 and 28 gives 3, 16, 22.

    Other depths scale: 55 % and 72 % of the depth, the first at 3, or at 10 % below twenty layers.

    Raises:
        SettingError: If the decoder has fewer than four layers.
    """
    if depth < 4:
        raise SettingError(f"A three-cut schedule needs a decoder of four layers or more; got {depth}.")
    if depth in (28, 32):
        return (3, 17, 22) if depth == 32 else (3, 16, 22)
    first = 3 if depth >= 20 else max(1, round(0.1 * depth))
    second = max(first + 1, round(0.55 * depth))
    return first, second, min(depth - 1, max(second + 1, round(0.72 * depth)))


@dataclass(frozen=True, slots=True)
class _Solver:
    """Solves r1 of the schedule (r1, r2, 0) for a mean retention, raising r2 and moving cuts if it must."""

    depth: int
    target: float
    vision_tokens: int | None
    min_keep: int
    method: str

    def __call__(self, cuts: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
        spent = self.depth * self.target  # in layers at full count
        if spent <= cuts[0] or self._floor(cuts) > self.target + 1e-12:
            raise BudgetError(self._refusal(cuts), self._floor(cuts))
        if len(cuts) == 1:
            ratio = (spent - cuts[0]) / (self.depth - cuts[0])
            return cuts, (min(1.0, ratio + 1e-12),)  # a count's share, in floats, must not truncate to one less
        first, second, third = cuts
        ratio = (spent - first) / ((second - first) + SECOND_KEEP * (third - second))
        if ratio <= 1:
            return cuts, (ratio, SECOND_KEEP, 0.0)
        if spent < third:
            return cuts, (1.0, (spent - second) / (third - second), 0.0)
        # Even keeping all up to the third cut is too little: the third cut moves late, and keeps the rest.
        last = min(self.depth - 1, int(spent))
        return (first, second, last), (1.0, 1.0, (spent - last) / (self.depth - last))

    def _floor(self, cuts: tuple[int, ...]) -> float:
        """The lowest reachable mean retention: everything to the first cut, `min_keep` tokens after it."""
        if self.vision_tokens is None:
            return cuts[0] / self.depth
        after = min(self.min_keep, self.vision_tokens) / self.vision_tokens
        return mean_tokens([1.0 if layer < cuts[0] else after for layer in range(self.depth)])

    def _refusal(self, cuts: tuple[int, ...]) -> str:
        floor = self._floor(cuts)
        asked, lowest = f"{self.target:.2%} of the vision tokens", f"{floor:.2%}"
        if self.vision_tokens is not None:
            asked = f"{self.target * self.vision_tokens:.4g} of {self.vision_tokens} vision tokens"
            lowest += f", {floor * self.vision_tokens:.1f} tokens"
        earlier = f"layers={(1, *cuts[1:])}" if cuts[0] > 1 else "a reduction before the decoder"
        return (
            f"{self.method} cannot average {asked} on {self.depth} layers: its first cut is before layer {cuts[0]}, "
            f"so its floor is {lowest}. Ask for more"
            + (f", or choose an earlier first cut yourself: {earlier}." if cuts[0] else ".")
        )
