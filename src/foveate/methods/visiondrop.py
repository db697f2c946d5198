"""VisionDrop: vision alone decides, in the tower and at three depths; what is dropped is merged into a few tokens.

Paper: Xu et al., "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", AAAI 2026,
arXiv:2506.22283. Importance of a vision token is the attention that other vision tokens pay to it.

Four stages: 0 behind the vision tower, 1 to 3 before decoder layers. Each keeps its d most attended tokens as they are
("dominant") and merges the others into c rows ("contextual"), by the cosine of their keys.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.merge import average, behind_cls, dominant_and_contextual, target_plus_mean
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Method, Preset
from foveate.methods.schedule import Budget, as_layers, entry_floor, entry_sizes, half_up
from foveate.methods.settings import Count, Layers, Positions, Share, Tokens, numbering
from foveate.methods.space import Space
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
    Signal,
    Stage,
    TowerAttention,
    TowerKeys,
)

__all__ = ["METHOD", "VisionDrop"]

# The released setting for LLaVA-1.5: 48, 35, 26 and 19 rows in eight layers each, 32 on average.
REFERENCE = 576  # vision tokens of its images, 24 x 24 patches
DOMINANT, CONTEXT = 42, 6  # behind the tower; the CLS is one of the 42
LAYERS = (8, 16, 24)
PAIRS = ((30, 5), (22, 4), (16, 3))

# What a budget is solved with.
ENTRY = 1.5  # the paper's e: half as many rows again as the mean leave the tower
CONTEXTUAL = 0.15  # share of merged rows; the released setting has 6 of 48, 5 of 35, 4 of 26, 3 of 19

Pair = tuple[Count, Count]
"""(dominant, contextual)."""


class VisionDrop(Method):
    """Dominant tokens and merged context, on the way out of the tower and before three decoder layers.

    The names are those of the authors' command line; the defaults are their setting, 32 tokens on average.

    Attributes:
        dominant: Tokens that the tower stage keeps unmerged; the CLS, if the tower has one, counts as one.
        contextual: Rows into which the tower stage merges the other tokens. 0 and 0 switch the tower stage off.
        layer_list: Decoder layers whose input is cut, strictly ascending.
        image_token_list: (dominant, contextual) at each of these layers.
        reference: Vision tokens of the image that these counts are for; scaled for images of another size.
        retention: Instead of the counts: the mean share of an image's tokens that a decoder layer processes.
        tokens: The same as a number of tokens.
        entry: With a budget: rows that enter the decoder, as a multiple of the mean (in the paper 1.5 for images and
            3 for video).
        positions: "reindex" renumbers the rows after each cut, as the paper's code does; "keep" keeps position ids, and
            a merged row takes its target's. Families with M-RoPE always keep.
        merge: "sum" adds the mean of the merged tokens to their target (the released code), "average" averages all.
        include_cls: Give the tower's CLS state to the decoder (only if rows are renumbered: it has no position).
        renorm: Renormalise the scoring rows over the vision tokens.
        bidirectional: Scoring rows also attend to later vision tokens. This removes the causal bias to early tokens.
        queries: Of an image, so many vision rows score before a decoder layer, spread evenly over those that are left;
            None: all, as in the paper. Not the paper's: scoring all rows by all rows is quadratic. The tower stage has
            no such choice.

    Raises:
        SettingError: If the lists differ in length or counts leave their range.
    """

    name = "visiondrop"
    schedule: ClassVar[tuple[str, ...]] = ("dominant", "contextual", "layer_list", "image_token_list", "reference")

    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "positions": ("reindex", "keep"),
        "merge": ("sum", "average"),
        "bidirectional": (False, True),
        "renorm": (False, True),
    }

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
    queries: Annotated[int, Ge(1)] | None = None

    def check_settings(self) -> None:
        if self.retention is not None or self.tokens is not None:
            self._check_budget()
        else:
            self._fill_in()

    def _check_budget(self) -> None:
        """Refuse counts beside a budget."""
        Budget(self.tokens, self.retention)
        if self.image_token_list is not None:
            raise SettingError("Give either image_token_list or a budget (retention=, tokens=), not both.")
        if (self.dominant, self.contextual) != (DOMINANT, CONTEXT):
            raise SettingError(
                "Give either dominant and contextual or a budget (retention=, tokens=), not both; "
                f"got dominant={self.dominant}, contextual={self.contextual}."
            )

    def _fill_in(self) -> None:
        """Take the released layers and counts where none are given."""
        layers = LAYERS if self.layer_list is None else self.layer_list
        pairs = PAIRS if self.image_token_list is None else self.image_token_list
        self._set(layer_list=layers, image_token_list=pairs)
        if len(layers) != len(pairs):
            raise SettingError(
                f"layer_list and image_token_list must have the same length; got {len(layers)} and {len(pairs)}."
            )
        for dominant, contextual in ((self.dominant, self.contextual), *pairs):
            if dominant == 0 and contextual > 0:
                raise SettingError(
                    f"Contextual tokens need at least one dominant token; got dominant={dominant}, "
                    f"contextual={contextual}."
                )

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        layers = self._cuts(shape.depth)
        cuts = [self._decoder_stage(shape.depth, index, layer) for index, layer in enumerate(layers, start=1)]
        if self.retention == 1:
            return ()
        if self.dominant == 0 and self.image_token_list is not None:  # counts of 0 and 0: no tower stage
            return tuple(cuts)
        return (self._tower_stage(shape), *cuts)

    # -- stage 0: behind the vision tower ----------------------------------------------------------------------

    def _tower_stage(self, shape: Shape) -> Stage:
        # Where the tower has no CLS, the patches score each other, as the tokens do in the decoder.
        paid = TowerAttention(by="cls" if shape.cls else "patches")
        reads: tuple[Signal, ...] = (paid, TowerKeys())
        # The CLS has no position of its own, so it can enter the decoder only where rows are numbered anew.
        feeds_cls = self.include_cls and self.positions == "reindex" and shape.renumbers
        if feeds_cls:
            reads = (*reads, Cls())
        return ImageStage(
            reads=reads,
            count=partial(self._rows_left, shape.depth, 0),
            choose=partial(self._in_tower, shape.depth),
            positions=numbering(self.positions),
            ownerless=feeds_cls,
        )

    def _in_tower(self, depth: int, view: ImageView, count: int | None) -> Cut | None:
        if self.image_token_list is None and count == len(view):  # the budget keeps all; a CLS would replace a patch
            return None
        dominant, contextual = self._pair(depth, 0, view.arriving)
        # Dominant rows are the CLS, rows that the family adds by itself (a closing newline), and patches:
        # 42 + 6 with a CLS are the CLS, 41 patches and 6 merged rows.
        with_cls = Cls() in view
        patches = max(0, dominant - with_cls - view.arriving.reserved)
        # An image never has more rows than placeholders, so the CLS takes the place of a patch.
        room = len(view) - with_cls
        patches = min(patches, room)
        contextual = min(contextual, room - patches)
        if not with_cls and patches == len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, patches, contextual)
        rows = self._merged(view.features, cut)
        if with_cls:
            return behind_cls(view.cls, rows, cut)
        return cut.with_rows(rows)

    # -- stages 1 to 3: before decoder layers ------------------------------------------------------------------

    def _decoder_stage(self, depth: int, index: int, layer: int) -> Stage:
        # score_j: column j of softmax(q kᵀ / √d) in the layer to come, mean over heads and over the image's own rows.
        attention = Attention(
            rows="vision",
            layer="next",
            over="mean",
            renormalise=self.renorm,
            both_ways=self.bidirectional,
            sample=self.queries,
        )
        return LayerStage(
            layer,
            reads=(attention, Keys(), Hidden()),
            count=partial(self._rows_left, depth, index),
            choose=partial(self._in_decoder, depth, index),
            unit="image",
            positions=numbering(self.positions),
        )

    def _in_decoder(self, depth: int, index: int, view: LayerView, count: int | None) -> Cut | None:
        dominant, contextual = self._pair(depth, index, view.arriving)
        if dominant >= len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, dominant, contextual)
        return cut.with_rows(self._merged(view.hidden, cut))

    def _merged(self, rows: Tensor, cut: Cut) -> Tensor:
        """The rows of a cut, (tokens, width) -> (d + c, width).

        Dominant tokens stay as they are. A contextual row is its target plus the mean of the tokens that joined it, or
        the average of all.
        """
        if self.merge == "sum":
            return target_plus_mean(rows, cut)
        return average(rows, cut)

    # -- how many rows each stage leaves -----------------------------------------------------------------------

    def _cuts(self, depth: int) -> tuple[int, ...]:
        """Decoder layers whose input is cut."""
        if self.layer_list is None:
            return _quarters(depth)
        return self.layer_list

    def _rows_left(self, depth: int, index: int, arriving: Arriving) -> int:
        """Rows that stage `index` leaves of an image."""
        dominant, contextual = self._pair(depth, index, arriving)
        rows = dominant + contextual
        if index == 0:  # the family adds its reserved rows to these later
            rows = max(rows - arriving.reserved, 0)
        return min(rows, arriving.tokens)

    def _pair(self, depth: int, index: int, arriving: Arriving) -> tuple[int, int]:
        """(dominant, contextual) of stage `index` for an image."""
        if not arriving.entered:
            return 0, 0
        if self.image_token_list is None:
            mean = Budget(self.tokens, self.retention).mean(arriving.entered)
            pairs = _solved(mean, arriving.entered, depth, self._cuts(depth), self.entry)
            return pairs[index]
        counts = ((self.dominant, self.contextual), *self.image_token_list)
        dominant, contextual = counts[index]
        if arriving.entered == self.reference:
            return dominant, contextual
        # An image of another size gets its share: 42 + 6 of 576 tokens are 84 + 12 of 1,152.
        dominant = half_up(dominant * arriving.entered / self.reference)
        contextual = half_up(contextual * arriving.entered / self.reference)
        return max(1, dominant), contextual

    def space(self, depth: int) -> Space | None:
        return Space(build=self._cutting, depth=depth, first=1, counts_entry=True, settings=self.free_settings())

    def _cutting(
        self, layers: tuple[int, ...], counts: Sequence[float], entered: int, settings: Mapping[str, Any]
    ) -> Self:
        """This setting with other stages, which leave so many of `entered` tokens, the first of them behind the
        tower."""
        (dominant, contextual), *pairs = [_split(int(count)) for count in counts]
        return dataclasses.replace(
            self,
            dominant=dominant,
            contextual=contextual,
            layer_list=layers,
            image_token_list=tuple(pairs),
            reference=entered,
            retention=None,
            tokens=None,
            **settings,
        )

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        layers: Sequence[int] | None = None,
        entry: float | None = None,
        **values: Any,
    ) -> Self:
        """Four stages of sizes `entry` · T · ρ^i, before `layers` instead of a quarter, half and three quarters of the
        depth; `entry` is lowered where the image has fewer tokens. See `Method.solved`."""
        cuts = _quarters(depth) if layers is None else as_layers(layers)
        reference = entered or REFERENCE
        pairs = _solved(share * reference, reference, depth, cuts, ENTRY if entry is None else entry)
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
    """Cuts at a quarter, half and three quarters of the depth: 28 layers give 7, 14, 21."""
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
            f"VisionDrop cannot average {mean:.4g} of {full} vision tokens on {depth} layers: less than one token "
            f"would be left at the end. Its floor is {floor:.4g} tokens.",
            floor=floor / full,
        )
    return [_split(half_up(size)) for size in sizes]


def _split(size: int) -> tuple[int, int]:
    """(dominant, contextual) of a stage of so many rows, at least one of them dominant: 96 are 82 and 14."""
    contextual = min(half_up(CONTEXTUAL * size), size - 1)
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
