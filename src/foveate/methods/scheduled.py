"""Scheduled: cuts before given decoder layers, each keeping a share of the tokens that arrive."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

from torch import Tensor

from foveate.core.budget import keep_count
from foveate.core.cut import Cut
from foveate.core.rank import top
from foveate.errors import SettingError
from foveate.methods.base import Method
from foveate.methods.schedule import Budget, as_layers, default_layers, staged_ratios
from foveate.methods.settings import Count, Layers, Share, Shares, Tokens, Unit
from foveate.methods.space import Space
from foveate.methods.stages import Arriving, LayerStage, LayerView, Shape, Signal, Stage

__all__ = ["Scheduled"]


class Scheduled(Method):
    """Cuts before given decoder layers, each keeping a share of the vision tokens that arrive there.

    A subclass defines how tokens are ranked (`scores`), or which ones are kept (`select`), and which signals it reads
    (`reads`).

    Attributes:
        layers: Decoder layers (0-based) whose input is cut, strictly ascending. With a budget there are three, or one;
            the default then depends on the decoder's depth.
        keep: Share of the *arriving* vision tokens that each cut keeps, in [0, 1]. The ratios multiply: 0.5 then 0.3
            keeps 15 %.
        retention: Instead of `keep`: the mean share of the vision tokens that a decoder layer processes, in (0, 1]. The
            schedule is solved for every image.
        tokens: The same as a number of tokens.
        min_keep: Fewest tokens that a cut keeps. The released V2Drop keeps one token where its paper drops all.
        scope: Rank all vision tokens of a sample together ("sample"), each image or video separately ("image"), or each
            frame of a video separately ("frame").
        skip_below: Samples with fewer vision tokens than this are not cut; 0 switches this off.
    """

    first_layer: ClassVar[int] = 0
    """The earliest layer that may be cut."""
    usual_layers: ClassVar[tuple[int, ...]] = (3, 17, 22)
    """Default of `layers`, three or one: V2Drop's 192-token setting for LLaVA-1.5-7B."""
    usual_keep: ClassVar[tuple[float, ...]] = (0.5, 0.3, 0.0)
    """Default of `keep`, a share for each of these layers."""
    schedule: ClassVar[tuple[str, ...]] = ("keep",)

    layers: Layers | None = None
    keep: Shares | None = None
    retention: Share | None = None
    tokens: Tokens | None = None
    min_keep: Count = 1
    scope: Unit = "sample"
    skip_below: Count = 0

    def check_settings(self) -> None:
        if self.retention is not None or self.tokens is not None:
            self._check_budget()
        else:
            self._fill_in()
        if self.layers and self.layers[0] < self.first_layer:
            raise SettingError(f"layers start at {self.first_layer} for this method; got {self.layers[0]}.")

    def _check_budget(self) -> None:
        """Refuse a schedule beside a budget."""
        Budget(self.tokens, self.retention)
        if self.keep is not None:
            raise SettingError(f"Give either keep or a budget (retention=, tokens=), not both; got keep={self.keep}.")
        if self.layers is not None and len(self.layers) not in (1, 3):
            raise SettingError(f"A budget can be solved for three cuts, or one; got layers {self.layers}.")

    def _fill_in(self) -> None:
        """Take the usual layers or ratios where none are given."""
        layers = self.usual_layers if self.layers is None else self.layers
        keep = self.usual_keep if self.keep is None else self.keep
        self._set(layers=layers, keep=keep)
        if len(layers) != len(keep):
            raise SettingError(
                f"layers and keep must have the same length; got {len(layers)} layers {layers} "
                f"and {len(keep)} ratios {keep}."
            )

    def scores(self, view: LayerView) -> Tensor:
        """A number for each token, (tokens,); the highest stay."""
        raise NotImplementedError(f"{type(self).__name__} must define scores(view) or select(view, count).")

    def select(self, view: LayerView, count: int) -> Tensor:
        """Which `count` tokens of `view` stay: (count,) int64 indices into it, ascending."""
        return top(self.scores(view), count)

    def reads(self, layer: int) -> tuple[Signal, ...]:
        """The signals that `select` reads before this layer."""
        return ()

    def cuts(self, depth: int) -> tuple[int, ...]:
        """Decoder layers whose input is cut, in a decoder of `depth` layers."""
        if self.layers is None:
            return self._default_cuts(depth)
        return self.layers

    @classmethod
    def _default_cuts(cls, depth: int) -> tuple[int, ...]:
        """Three cuts move with the depth; a single one stays where it is."""
        if len(cls.usual_layers) == 3:
            return default_layers(depth)
        return cls.usual_layers

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return tuple(
            LayerStage(
                layer,
                reads=self.reads(layer),
                count=partial(self._count, shape.depth, index),
                **self._ranking(),
                unit=self.scope,
                flops=partial(self._flops, shape.depth, index),
            )
            for index, layer in enumerate(self.cuts(shape.depth))
        )

    def _ranking(self) -> dict[str, Any]:
        """How a stage ranks: by scores, unless a subclass selects in another way."""
        if type(self).select is Scheduled.select:
            return {"score": self.scores}
        return {"choose": self._chosen}

    def _chosen(self, view: LayerView, count: int | None) -> Cut | None:
        assert count is not None
        if count == len(view):
            return None
        return Cut.take(self.select(view, count), len(view))

    def _count(self, depth: int, index: int, arriving: Arriving) -> int:
        """How many tokens the cut of this index leaves."""
        if arriving.sample < self.skip_below:
            return arriving.tokens
        return self.kept(arriving.tokens, self._ratios(depth, arriving)[index])

    def kept(self, tokens: int, ratio: float) -> int:
        """How many of `tokens` a cut with this ratio keeps: truncated, and never fewer than `min_keep`."""
        return keep_count(tokens, ratio, self.min_keep)

    def share_for(self, count: int, tokens: int) -> float:
        """A ratio with which a cut keeps `count` of `tokens`: counts are truncated, so half a token is added."""
        return min(1.0, (count + 0.5) / tokens)

    def space(self, depth: int) -> Space | None:
        return Space(build=self._cutting, depth=depth, first=self.first_layer, settings=self.free_settings())

    def _cutting(
        self, layers: tuple[int, ...], counts: Sequence[float], entered: int, settings: Mapping[str, Any]
    ) -> Self:
        """This setting with other cuts, which leave so many of `entered` tokens; a cut that leaves all is none."""
        places: list[int] = []
        keep: list[float] = []
        arriving = entered
        for layer, count in zip(layers, map(int, counts), strict=True):
            if count < arriving or not places:
                places.append(layer)
                keep.append(self.share_for(count, arriving))
            arriving = count
        return dataclasses.replace(
            self, layers=tuple(places), keep=tuple(keep), retention=None, tokens=None, **settings
        )

    def _ratios(self, depth: int, arriving: Arriving) -> tuple[float, ...]:
        """Keep ratios of all cuts: as given, or solved for what has entered."""
        if self.keep is not None:
            return self.keep
        # An earlier stage may have left fewer tokens than entered: the budget counts from those that entered.
        mean = Budget(self.tokens, self.retention).mean(arriving.entered)
        if mean >= arriving.started:
            return (1.0,) * len(self.cuts(depth))
        _, ratios = staged_ratios(
            self.cuts(depth),
            depth,
            mean,
            start=arriving.started,
            entered=arriving.entered,
            floor=min(self.min_keep, arriving.started),
            owner=type(self).__name__,
            movable=False,
        )
        return ratios

    def _flops(self, depth: int, index: int, arriving: Arriving, width: int) -> int:
        """FLOPs of ranking at a cut; none where all stay."""
        if self._count(depth, index, arriving) == arriving.tokens:
            return 0
        return self.rank_flops(arriving.tokens, width)

    def rank_flops(self, tokens: int, width: int) -> int:
        """FLOPs of ranking so many tokens."""
        return 0

    @classmethod
    def solved(
        cls, share: float, entered: int | None, depth: int, /, layers: Sequence[int] | None = None, **values: Any
    ) -> Self:
        """Three cuts whose mean meets a budget, or the single cut, if `layers` has one. See `Method.solved`.

        Uniform.for_budget(model, tokens=192, layers=(0,))     # before the decoder: any budget from one token on
        """
        cuts = cls._default_cuts(depth) if layers is None else as_layers(layers)
        if len(cuts) not in (1, 3):
            raise SettingError(f"A budget can be solved for three cuts, or one; got layers {cuts}.")
        if share == 1:
            return cls(layers=cuts, keep=(1.0,) * len(cuts), **values)
        start, floor = 1.0, 0.0  # the image's count is not known: all in shares
        if entered:  # all in tokens
            start = entered
            floor = min(values.get("min_keep", cls.min_keep), start)
        cuts, keep = staged_ratios(cuts, depth, share * start, start, entered, floor, cls.__name__)
        return cls(layers=cuts, keep=keep, **values)
