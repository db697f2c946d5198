"""VisionDrop: vision alone decides, in the tower and at three depths; what is dropped is merged into a few tokens.

Paper: Xu et al., "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", AAAI 2026,
arXiv:2506.22283. Importance of a vision token is the attention that other vision tokens pay to it.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.merge import average, dominant_and_contextual, target_plus_mean
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method, Preset
from foveate.methods.schedule import Budget, as_layers, entry_floor, entry_sizes
from foveate.methods.settings import Count, Layers, Positions, Share, Tokens
from foveate.methods.stages import (
    Arriving,
    Attention,
    Cls,
    Hidden,
    ImageStage,
    ImageView,
    Keys,
    LayerStage,
    LayerView,
    Shape,
    Stage,
    TowerAttention,
    TowerKeys,
)

__all__ = ["METHOD", "VisionDrop"]

ENTRY = 1.5  # the paper's entry: half as many again as the mean
CONTEXTUAL = 0.15  # share of merged rows, near the released 6 of 48
REFERENCE = 576
DOMINANT, CONTEXT = 42, 6  # the released code's, out of the tower
LAYERS, PAIRS = (8, 16, 24), ((30, 5), (22, 4), (16, 3))  # the released code's

Pair = tuple[Count, Count]
"""(dominant, contextual)."""


class VisionDrop(Method):
    """Dominant tokens and merged context, on the way out of the tower and before three decoder layers.

    The names are those of the authors' command line; the defaults are their setting, 32 tokens on average.

    Attributes:
        dominant: Tokens that leave the tower as they are; the CLS counts as one where the tower has one.
        contextual: Rows the others are merged into there. 0 and 0 switch the tower stage off.
        layer_list: Decoder layers whose input is cut, strictly ascending.
        image_token_list: (dominant, contextual) at each.
        reference: Vision tokens of the image these counts are for; an image of other size gets its share of them.
        retention: Instead of the counts: the share of an image's tokens that a decoder layer processes on average.
        tokens: The same as a number of tokens.
        entry: With a budget: what leaves the tower, in units of the mean (1.5 for images, 3 for video in the paper).
        positions: "reindex" numbers rows anew after every cut, as the paper's code does; "keep" keeps position ids, and
            a merged row takes its target's. Families with M-RoPE always keep.
        merge: "sum" adds the mean of the merged tokens to their target (the released code), "average" averages all.
        include_cls: Feed the tower's CLS state to the decoder (only where rows are numbered anew: it has no position).
        renorm: Renormalise the scoring rows over the vision tokens.
        bidirectional: Let scoring rows see later vision tokens too, which takes off the causal bias to early ones.

    Raises:
        SettingError: If the lists differ in length or counts leave their range.
    """

    name = "visiondrop"
    schedule: ClassVar[tuple[str, ...]] = ("dominant", "contextual", "layer_list", "image_token_list", "reference")

    dominant: Count = DOMINANT
    contextual: Count = CONTEXT
    layer_list: Layers | None = None
    image_token_list: tuple[Pair, ...] | None = None
    reference: Annotated[int, Ge(1)] = REFERENCE
    retention: Share | None = None
    tokens: Tokens | None = None
    entry: Tokens = ENTRY
    positions: Positions = "reindex"
    merge: Literal["sum", "average"] = "sum"
    include_cls: bool = True
    renorm: bool = False
    bidirectional: bool = False

    def check_settings(self) -> None:
        if self.retention is not None or self.tokens is not None:
            Budget(self.tokens, self.retention)
            if self.image_token_list is not None:
                raise SettingError("A budget is solved for image_token_list, so that cannot be given too.")
            if (self.dominant, self.contextual) != (DOMINANT, CONTEXT):
                raise SettingError(
                    "A budget is solved for dominant and contextual, so these cannot be given too; "
                    f"got {self.dominant} and {self.contextual}."
                )
            return
        layers = LAYERS if self.layer_list is None else self.layer_list
        pairs = PAIRS if self.image_token_list is None else self.image_token_list
        self._set(layer_list=layers, image_token_list=pairs)
        if len(layers) != len(pairs):
            raise SettingError(
                f"layer_list and image_token_list must be equally long; got {len(layers)} and {len(pairs)}."
            )
        for dominant, contextual in ((self.dominant, self.contextual), *pairs):
            if dominant == 0 and contextual > 0:
                raise SettingError(f"Counts are dominant >= 1 and contextual >= 0; got {dominant} and {contextual}.")

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        renumbers = self.positions == "reindex" and shape.renumbers
        positions: Literal["renumber", "keep"] = "renumber" if self.positions == "reindex" else "keep"
        cuts = [
            LayerStage(
                layer,
                reads=(self._received, Keys(), Hidden()),
                count=partial(self._left, shape.depth, index + 1),
                choose=partial(self._in_decoder, shape.depth, index + 1),
                unit="image",
                positions=positions,
            )
            for index, layer in enumerate(self._cuts(shape.depth))
        ]
        if self.retention == 1:
            return ()
        if self.dominant == 0 and self.image_token_list is not None:
            return tuple(cuts)
        cls = (Cls(),) if self.include_cls and renumbers else ()
        paid = TowerAttention(by="cls" if shape.cls else "patches")
        tower = ImageStage(
            reads=(paid, TowerKeys(), *cls),
            count=partial(self._left, shape.depth, 0),
            choose=partial(self._in_tower, shape.depth),
            positions=positions,
            ownerless=bool(cls),
        )
        return (tower, *cuts)

    # -- which tokens ------------------------------------------------------------------------------------------

    @property
    def _received(self) -> Attention:
        """Mean attention that an image's own rows pay to each of its tokens."""
        return Attention(
            rows="vision", layer="next", over="mean", renormalise=self.renorm, both_ways=self.bidirectional
        )

    def _in_tower(self, depth: int, view: ImageView, count: int | None) -> Cut | None:
        if self.image_token_list is None and count == len(view):  # a CLS would take the place of a token
            return None
        dominant, contextual = self._pair(depth, 0, view.arriving)
        with_cls = Cls() in view
        # A CLS takes the place of a token: an image never has more rows than placeholders.
        dominant = min(max(0, dominant - with_cls - view.arriving.reserved), len(view) - with_cls)
        contextual = min(contextual, len(view) - with_cls - dominant)
        if not with_cls and dominant == len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, dominant, contextual)
        rows = self._merged(view.features, cut)
        if not with_cls:
            return cut.with_rows(rows)
        source = torch.cat((cut.source.new_full((1,), -1), cut.source))
        parent = torch.where(cut.parent < 0, cut.parent, cut.parent + 1)
        return Cut.merge(source, torch.cat((view.cls.to(rows.dtype), rows)), parent)

    def _in_decoder(self, depth: int, index: int, view: LayerView, count: int | None) -> Cut | None:
        dominant, contextual = self._pair(depth, index, view.arriving)
        if dominant >= len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, dominant, contextual)
        return cut.with_rows(self._merged(view.hidden, cut))

    def _merged(self, rows: Tensor, cut: Cut) -> Tensor:
        return target_plus_mean(rows, cut) if self.merge == "sum" else average(rows, cut)

    # -- how many ----------------------------------------------------------------------------------------------

    def _cuts(self, depth: int) -> tuple[int, ...]:
        return _quarters(depth) if self.layer_list is None else self.layer_list

    def _left(self, depth: int, index: int, arriving: Arriving) -> int:
        """Rows that a stage leaves of an image."""
        left = sum(self._pair(depth, index, arriving))
        if index == 0:  # the family's own closing row is among them
            left = max(left - arriving.reserved, 0)
        return min(left, arriving.tokens)

    def _pair(self, depth: int, index: int, arriving: Arriving) -> tuple[int, int]:
        """(dominant, contextual) of a stage for an image: the tower's is 0; at least one token."""
        if self.image_token_list is None:
            mean = Budget(self.tokens, self.retention).mean(arriving.entered)
            return _solved(mean, arriving.entered, depth, self._cuts(depth), self.entry)[index]
        pair = ((self.dominant, self.contextual), *self.image_token_list)[index]
        if arriving.entered == self.reference:
            return pair
        scaled = tuple(math.floor(count * arriving.entered / self.reference + 0.5) for count in pair)
        return max(1, scaled[0]), scaled[1]

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        layers: Sequence[int] | None = None,
        entry: float = ENTRY,
        **values: Any,
    ) -> Self:
        """Four stages of sizes `entry` · T · ρ^i, before `layers` instead of a quarter, half and three quarters of the
        depth; `entry` is lowered where the image has fewer tokens. See `Method.solved`."""
        cuts = _quarters(depth) if layers is None else as_layers(layers)
        reference = entered or REFERENCE
        pairs = _solved(share * reference, reference, depth, cuts, entry)
        if share == 1:  # no stage at all; a CLS would take the place of a token
            return cls(dominant=0, contextual=0, layer_list=(), image_token_list=(), reference=reference, **values)
        (dominant, contextual), *rest = pairs
        return cls(
            dominant=dominant,
            contextual=contextual,
            layer_list=cuts,
            image_token_list=tuple(rest),
            reference=reference,
            **values,
        )


def _quarters(depth: int) -> tuple[int, ...]:
    """Cuts at a quarter, half and three quarters of the depth."""
    if depth < 4:
        raise SettingError(f"A four-stage schedule needs a decoder of four layers or more; got {depth}.")
    return as_layers([round(depth * part / 4) for part in (1, 2, 3)])


def _solved(mean: float, full: int, depth: int, cuts: Sequence[int], entry: float) -> list[tuple[int, int]]:
    """(dominant, contextual) of each stage for a budget.

    Raises:
        BudgetError: If less than one token would be left at the end; the message names the floor.
    """
    sizes = entry_sizes(mean, full, depth, cuts, entry)
    if sizes[-1] < 1:
        floor = entry_floor(full, depth, cuts, entry)
        raise BudgetError(
            f"VisionDrop cannot average {mean:.4g} of {full} vision tokens on {depth} layers: less than one "
            f"would be left. Its floor is {floor:.4g} tokens.",
            floor=floor / full,
        )
    return [_split(math.floor(size + 0.5)) for size in sizes]


def _split(size: int) -> tuple[int, int]:
    """(dominant, contextual) of a stage of so many rows."""
    contextual = min(math.floor(CONTEXTUAL * size + 0.5), size - 1)
    return size - contextual, contextual


def _preset(model: str, budget: int, full: int, stages: Sequence[tuple[int, int]], source: str) -> Preset:
    (dominant, contextual), rest = stages[0], tuple(stages[1:])
    method = VisionDrop(dominant=dominant, contextual=contextual, image_token_list=rest, reference=full)
    return Preset(f"visiondrop/{model}/{budget}", method, 32, full, source)


def _derived(model: str, budget: int, full: int, sizes: Sequence[int]) -> Preset:
    return _preset(model, budget, full, [_split(size) for size in sizes], "derived from the paper's schedule rule")


VisionDrop.presets = (
    _preset("llava-1.5-7b", 32, 576, [(42, 6), (30, 5), (22, 4), (16, 3)], "released code"),
    _derived("llava-1.5-7b", 64, 576, (96, 70, 52, 38)),
    _derived("llava-1.5-7b", 128, 576, (192, 141, 103, 76)),
    _derived("llava-1.5-7b", 192, 576, (288, 211, 155, 114)),
    _derived("llava-next-7b", 160, 2880, (240, 176, 129, 95)),
    _derived("llava-next-7b", 320, 2880, (480, 352, 258, 190)),
    _derived("llava-next-7b", 640, 2880, (960, 704, 517, 379)),
    _derived("video-llava-7b", 256, 2048, (768, 194, 49, 12)),  # the entry factor for video is 3
)

METHOD = VisionDrop
