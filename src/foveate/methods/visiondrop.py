"""VisionDrop: vision alone decides, in the tower and at three depths; what leaves is merged into a few tokens.

Paper: Xu et al., "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", AAAI 2026,
arXiv:2506.22283. Importance of a vision token is the attention other vision tokens pay to it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from foveate.core.merge import Merge, average, dominant_and_contextual, target_plus_mean
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Cut, Method, Preset, TowerView, View, as_layers, decoder_depth, share

__all__ = ["METHOD", "VisionDrop", "solve_sizes"]

ENTRY = 1.5  # the paper's entry: half as many again as the mean
CONTEXTUAL = 0.15  # share of merged rows, near the released 6 of 48
REFERENCE = 576


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionDrop(Method):
    """Dominant tokens and merged context, on the way out of the tower and before three decoder layers.

    The names are those of the authors' command line; the defaults are their setting, 32 tokens on average.

    Attributes:
        dominant: Tokens that leave the tower as they are; the CLS counts as one where the tower has one.
        contextual: Rows the others are merged into there. 0 and 0 switch the tower stage off.
        layer_list: Decoder layers whose input is cut, strictly ascending.
        image_token_list: (dominant, contextual) at each.
        reference: Vision tokens of the image these counts are for; an image of other size gets its share of them.
        positions: "reindex" numbers rows anew after every cut, as the paper's code does; "keep" keeps position ids, and
            a merged row takes its target's. Families with M-RoPE always keep.
        merge: "sum" adds the mean of the merged tokens to their target (the released code), "average" averages all.
        include_cls: Feed the tower's CLS state to the decoder (only where rows are numbered anew: it has no position).
        renorm: Renormalise the scoring rows over the vision tokens.
        bidirectional: Let scoring rows see later vision tokens too, which takes off the causal bias to early ones.

    Raises:
        SettingError: If the lists differ in length or counts leave their range.
    """

    name: ClassVar[str] = "visiondrop"

    dominant: int = 42
    contextual: int = 6
    layer_list: tuple[int, ...] = (8, 16, 24)
    image_token_list: tuple[tuple[int, int], ...] = ((30, 5), (22, 4), (16, 3))
    reference: int = REFERENCE
    positions: Literal["reindex", "keep"] = "reindex"
    merge: Literal["sum", "average"] = "sum"
    include_cls: bool = True
    renorm: bool = False
    bidirectional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer_list", as_layers(self.layer_list))
        if self.layer_list and self.layer_list[0] < 0:
            raise SettingError(f"layer_list are decoder layers from 0 on; got {self.layer_list}.")
        pairs = tuple((int(dominant), int(contextual)) for dominant, contextual in self.image_token_list)
        object.__setattr__(self, "image_token_list", pairs)
        if len(self.layer_list) != len(pairs):
            raise SettingError(
                f"layer_list and image_token_list must be equally long; got {len(self.layer_list)} and {len(pairs)}."
            )
        for dominant, contextual in ((self.dominant, self.contextual), *pairs):
            if dominant < 0 or contextual < 0 or (dominant == 0 and contextual > 0):
                raise SettingError(f"Counts are dominant >= 1 and contextual >= 0; got {dominant} and {contextual}.")
        if self.reference < 1:
            raise SettingError(f"reference is a number of vision tokens, 1 or more; got {self.reference}.")
        if self.positions not in ("reindex", "keep"):
            raise SettingError(f"positions is 'reindex' or 'keep'; got {self.positions!r}.")
        if self.merge not in ("sum", "average"):
            raise SettingError(f"merge is 'sum' or 'average'; got {self.merge!r}.")

    @property
    def together(self) -> bool:
        return True

    @property
    def reindexes(self) -> bool:
        return self.positions == "reindex"

    @property
    def reduces_tower(self) -> bool:
        return self.dominant > 0

    @property
    def adds_rows(self) -> bool:
        return self.include_cls and self.reduces_tower and self.reindexes

    def cuts(self) -> tuple[int, ...]:
        return self.layer_list

    def reduce(self, view: TowerView) -> Cut | None:
        dominant, contextual = self._counts((self.dominant, self.contextual), view.entered)
        with_cls = view.cls is not None and view.reindex and self.include_cls
        # A CLS takes the place of a token: an image never has more rows than placeholders.
        dominant = min(max(0, dominant - with_cls - view.reserved), len(view) - with_cls)
        contextual = min(contextual, len(view) - with_cls - dominant)
        if not with_cls and dominant == len(view):
            return None
        merge = dominant_and_contextual(view.attention(), view.keys(), dominant, contextual)
        rows = self._merged(view.features, merge)
        if not with_cls:
            return Cut(merge.origin, (len(merge),), rows, merge.assign)
        assert view.cls is not None
        first = merge.origin.new_full((1,), -1)
        assign = torch.where(merge.assign < 0, merge.assign, merge.assign + 1)
        rows = torch.cat((view.cls.to(rows.dtype), rows))
        return Cut(torch.cat((first, merge.origin)), (len(rows),), rows, assign)

    def cut(self, view: View) -> Cut | None:
        counts = self.image_token_list[self.layer_list.index(view.layer)]
        cuts = [self._cut_image(image, counts) for image in view.images()]
        if all(cut.rows is None for cut in cuts):
            return None
        assert view.sizes is not None
        return Cut.join([_as_rows(cut, image) for cut, image in zip(cuts, view.images(), strict=True)], view.sizes)

    def _cut_image(self, view: View, counts: tuple[int, int]) -> Cut:
        dominant, contextual = self._counts(counts, view.entered_sizes[0])
        if dominant >= len(view):
            return Cut(torch.arange(len(view), device=view.tokens.device))
        merge = dominant_and_contextual(self._scores(view), view.keys, dominant, contextual)
        return Cut(merge.origin, (len(merge),), self._merged(view.hidden, merge), merge.assign)

    def _scores(self, view: View) -> Tensor:
        """Mean attention the image's own rows pay to each of its tokens: (tokens,) float32."""
        total = view.tokens.new_zeros(len(view), dtype=torch.float32)
        for rows in view.attention("vision", bidirectional=self.bidirectional):
            total += (rows / rows.sum(dim=-1, keepdim=True) if self.renorm else rows).sum(dim=0)
        return total / len(view)

    def _merged(self, rows: Tensor, merge: Merge) -> Tensor:
        return target_plus_mean(rows, merge) if self.merge == "sum" else average(rows, merge)

    def _counts(self, counts: tuple[int, int], size: int) -> tuple[int, int]:
        """An image's share of (dominant, contextual), at least one token."""
        if size == self.reference:
            return counts
        scaled = tuple(math.floor(count * size / self.reference + 0.5) for count in counts)
        return max(1, scaled[0]), scaled[1]

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...]:
        counts, per_layer = list(sizes), []
        if self.reduces_tower:
            counts = [min(size, sum(self._counts((self.dominant, self.contextual), size))) for size in sizes]
        for layer in range(depth):
            if layer in self.layer_list:
                pair = self.image_token_list[self.layer_list.index(layer)]
                counts = [min(n, sum(self._counts(pair, size))) for n, size in zip(counts, sizes, strict=True)]
            per_layer.append(sum(counts))
        return tuple(per_layer)

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        """Queries and keys of the vision rows and their products, at each decoder cut."""
        plan, total = self.plan(depth, sizes), 0
        for layer in self.layer_list:
            rows = plan[layer - 1] if layer else sum(sizes)
            total += 4 * rows * width**2 + 2 * rows**2 * width
        return total

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        layers: Sequence[int] | None = None,
        entry: float = ENTRY,
        **settings: Any,
    ) -> Self:
        """The four-stage schedule whose mean over decoder layers meets a budget: sizes `entry` · T · ρ^i.

        Args:
            model: A model or its config, for its depth (four layers or more).
            tokens: Mean vision tokens a layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            layers: The cuts, instead of a quarter, half and three quarters of the depth.
            entry: What leaves the tower, in units of the mean (1.5 for images, 3 for video in the paper); lowered where
                the image has fewer tokens.
            settings: Other settings of the method.

        Raises:
            BudgetError: If less than one token would be left at the end; the message names the floor.
            SettingError: If the budget is contradictory or the decoder has fewer than four layers.
        """
        target, count = share(model, tokens, retention, vision_tokens)
        depth = decoder_depth(model)
        if depth < 4:
            raise SettingError(f"A four-stage schedule needs a decoder of four layers or more; got {depth}.")
        cuts = as_layers(layers if layers is not None else [round(depth * part / 4) for part in (1, 2, 3)])
        reference = count or REFERENCE
        mean = target * reference
        sizes = solve_sizes(mean, reference, depth, cuts, entry)
        if sizes[-1] < 1:
            floor = _floor(reference, depth, cuts, entry)
            raise BudgetError(
                f"VisionDrop cannot average {mean:.4g} of {reference} vision tokens on {depth} layers: less than one "
                f"would be left. Its floor is {floor:.4g} tokens.",
                floor=floor / reference,
            )
        if target == 1:  # no stage at all; a CLS would take the place of a token
            return cls(dominant=0, contextual=0, layer_list=(), image_token_list=(), reference=reference, **settings)
        pairs = [_split(math.floor(size + 0.5)) for size in sizes]
        (dominant, contextual), rest = pairs[0], tuple(pairs[1:])
        return cls(
            dominant=dominant,
            contextual=contextual,
            layer_list=cuts,
            image_token_list=rest,
            reference=reference,
            **settings,
        )


def solve_sizes(mean: float, full: int, depth: int, cuts: Sequence[int], entry: float) -> list[float]:
    """Stage sizes e · T · ρ^i, i = 0 … cuts, whose mean over the layers is T: the paper's schedule for any cuts.

    `entry` (e) is lowered to full / T where e · T exceeds the image; at e <= 1 every stage is T.
    """
    entry = min(entry, full / mean)
    bounds = [0, *cuts, depth]
    weights = [(after - before) / depth for before, after in itertools.pairwise(bounds)]
    if entry <= 1:
        return [mean] * len(weights)
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        over = entry * sum(weight * middle**stage for stage, weight in enumerate(weights)) > 1
        low, high = (low, middle) if over else (middle, high)
    return [entry * mean * low**stage for stage in range(len(weights))]


def _floor(full: int, depth: int, cuts: Sequence[int], entry: float) -> float:
    """The smallest mean whose last stage has one token."""
    low, high = 1e-6, float(full)
    for _ in range(100):
        middle = (low + high) / 2
        enough = solve_sizes(middle, full, depth, cuts, entry)[-1] >= 1
        low, high = (low, middle) if enough else (middle, high)
    return high


def _split(size: int) -> tuple[int, int]:
    """(dominant, contextual) of a stage of so many rows."""
    contextual = min(math.floor(CONTEXTUAL * size + 0.5), size - 1)
    return size - contextual, contextual


def _as_rows(cut: Cut, view: View) -> Cut:
    """A cut in the form of one that merges, for images that stay whole beside others that do not."""
    if cut.rows is not None:
        return cut
    return Cut(cut.kept, (len(view),), view.hidden, cut.kept)


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
