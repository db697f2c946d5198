"""VisionDrop: rank by vision attention alone, in the tower and at three depths; merge dropped tokens into a few rows.

Paper: Xu et al., "Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment", AAAI 2026,
arXiv:2506.22283. The importance of a vision token is the attention that other vision tokens pay to it.

Four stages: 0 after the vision tower, 1 to 3 before decoder layers. Each keeps its d most attended tokens unchanged
("dominant") and merges the others into c rows ("contextual"), by the cosine of their keys.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from foveate.contract import Arriving, Cuts, ImageView, LayerView, Shape, Stage, half_up, merging_stage
from foveate.contract.budget import solve
from foveate.contract.settings import Count, Layers, Positions
from foveate.core.cut import Cut
from foveate.core.merge import dominant_and_contextual, merge_rows
from foveate.core.signals import Attention, Cls, Hidden, Keys, Signal
from foveate.errors import SettingError

# The released setting for LLaVA-1.5: 48, 35, 26 and 19 rows in eight layers each, 32 on average. 42 includes the CLS.
DOMINANT, CONTEXT = 42, 6

Pair = tuple[Count, Count]
"""(dominant, contextual)."""


class VisionDrop(Cuts):
    """Keeps dominant tokens and merges the others, at the exit of the tower and before three decoder layers.

    Attributes:
        dominant: Tokens that the tower stage keeps unmerged, usually 42. A CLS, if the tower has one, is one of them.
        contextual: Rows into which it merges the other tokens, usually 6. 0 and 0 switch the tower stage off.
        layer_list: Decoder layers whose input is cut: by default a quarter, half and three quarters of the depth.
        image_token_list: (dominant, contextual) at each of these layers, usually (30, 5), (22, 4) and (16, 3).
        reference: Vision tokens of the image that these counts are for. Counts are scaled for images of another size.
        retention, tokens: Instead of the counts: a budget; see `Cuts`.
        positions: See `Positions`. The released code renumbers. With "keep" a merged row takes its target's position.
        merge: "sum" adds the mean of the merged tokens to their target (the released code); "average" averages all.
        include_cls: Give the tower's CLS state to the decoder. Only if rows are renumbered, since it has no position.
        renorm: Renormalise the scoring rows over the vision tokens.
        bidirectional: Let scoring rows also attend to later vision tokens. This removes the causal bias to early
            tokens.
        queries: Score with only this many of an image's rows before a decoder layer, spread evenly. None: all, as in
            the paper.
    """

    name = "visiondrop"
    layers_setting = "layer_list"
    usual_layers = (8, 16, 24)
    usual_keep = ((30, 5), (22, 4), (16, 3))
    schedule = ("image_token_list", "dominant", "contextual")
    unit = "image"
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "positions": ("reindex", "keep"),
        "merge": ("sum", "average"),
        "bidirectional": (False, True),
        "renorm": (False, True),
    }

    dominant: Count | None = None
    contextual: Count | None = None
    layer_list: Layers | None = None
    image_token_list: tuple[Pair, ...] | None = None
    reference: Annotated[int, Ge(1)] = 576
    positions: Positions = "reindex"
    merge: Literal["sum", "average"] = "sum"
    include_cls: bool = True
    renorm: bool = False
    bidirectional: bool = False
    queries: Annotated[int, Ge(1)] | None = None

    def check_settings(self) -> None:
        super().check_settings()
        for dominant, contextual in (self._in_front, *(self.image_token_list or ())):
            if dominant == 0 and contextual > 0:
                raise SettingError(
                    f"Contextual tokens need at least one dominant token; got dominant={dominant}, "
                    f"contextual={contextual}."
                )

    @property
    def _in_front(self) -> Pair:
        """(dominant, contextual) of the tower stage, as given or usual."""
        dominant = DOMINANT if self.dominant is None else self.dominant
        return dominant, CONTEXT if self.contextual is None else self.contextual

    # -- stage 0: after the vision tower ----------------------------------------------------------------------

    @property
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        # score_j: column j of softmax(q kᵀ / √d) in the next layer, mean over heads and over the image's own rows.
        attention = Attention(
            rows="vision",
            layer="next",
            over="mean",
            renormalise=self.renorm,
            both_ways=self.bidirectional,
            sample=self.queries,
        )
        return attention, Keys(), Hidden()

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        depth, cuts = shape.depth, []
        for index, stage in enumerate(super().steps(shape)):
            cuts.append(replace(stage, score=None, choose=partial(self._in_decoder, depth, index)))
        if self.dominant == 0:
            return tuple(cuts)
        count, choose = partial(self._entering, depth), partial(self._in_tower, depth)
        return (merging_stage(shape, self.positions, count, self.include_cls, choose=choose), *cuts)

    def _entering(self, depth: int, arriving: Arriving) -> int:
        """Rows that the tower stage leaves of an image, without the reserved rows that the family adds."""
        return max(int(sum(self.solution(depth, arriving)[0])) - arriving.reserved, 0)

    def _in_tower(self, depth: int, view: ImageView, count: int | None) -> Cut | None:
        if self.budget is not None and count == len(view):  # all tokens stay; adding a CLS would replace a patch
            return None
        dominant, contextual = self.solution(depth, view.arriving)[0]
        # Dominant rows are the CLS, rows that the family adds (a closing newline), and patches. The CLS replaces a
        # patch, so that an image never has more rows than placeholders.
        with_cls = Cls() in view
        room = len(view) - with_cls
        patches = min(max(0, dominant - with_cls - view.arriving.reserved), room)
        contextual = min(contextual, room - patches)
        if not with_cls and patches == len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, patches, contextual)
        return merge_rows(view.features, cut, self.merge, view.cls if with_cls else None)

    # -- stages 1 to 3: before decoder layers ------------------------------------------------------------------

    def _in_decoder(self, depth: int, index: int, view: LayerView, count: int | None) -> Cut | None:
        dominant, contextual = self.solution(depth, view.arriving)[index + 1]
        if dominant >= len(view):
            return None
        cut = dominant_and_contextual(view.attention, view.keys, dominant, contextual)
        return merge_rows(view.hidden, cut, self.merge)

    # -- how many rows each stage leaves -----------------------------------------------------------------------

    def count(self, depth: int, index: int, arriving: Arriving) -> int:
        return int(sum(self.solution(depth, arriving)[index + 1]))

    def solve(self, depth: int, entered: int, started: int) -> tuple[Pair, ...]:
        if self.budget is None:
            return tuple(self._scale(pair, entered) for pair in (self._in_front, *self.values(depth)))
        # Stage i leaves 1.5 · T · ρ^i rows: the paper's schedule for images, for any number of cuts. For four stages of
        # equal length ρ = 0.7336, and T = 32 gives 48, 35.2, 25.8 and 19.0. The number that enters is limited by the
        # image's tokens, and so that each later stage can leave one row.
        mean, cuts = self.budget.mean(entered), (0, *self.cuts(depth))
        before = (*cuts, depth)[1]  # layers that process what enters
        first = max(mean, min(1.5 * mean, entered))
        first = min(first, max(mean, (depth * mean - (depth - before)) / max(1, before)))

        def curve(ratio: float) -> list[float]:
            return [max(1.0, first * ratio**stage) for stage in range(len(cuts))]

        ratio = solve(curve, cuts, depth, mean, entered, entered, type(self).__name__)
        return tuple(_split(half_up(rows)) for rows in curve(ratio))

    def _scale(self, pair: Pair, entered: int) -> Pair:
        """Scale the counts to an image of another size: 42 + 6 of 576 tokens are 84 + 12 of 1,152."""
        if entered == self.reference:
            return pair
        dominant, contextual = (half_up(count * entered / self.reference) for count in pair)
        return max(1, dominant), contextual


def _split(size: int) -> Pair:
    """(dominant, contextual) of a stage of `size` rows, at least one of them dominant: 96 are 82 and 14."""
    contextual = min(half_up(0.15 * size), size - 1)  # the released setting has 6 of 48, 5 of 35, 4 of 26, 3 of 19
    return size - contextual, contextual
