"""SparseVLM: only words that talk about the picture rate its tokens; some of the losers are merged and come back.

Paper: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference", ICML 2025,
arXiv:2410.04417.

Raters: with V and T what the decoder gets of vision and of the text behind it, m = mean_v softmax_t(V Tᵀ); the words t
with m_t > mean m. Behind layer l: s_j = mean over raters and heads of A_l[rater, j]; the n_l tokens with the largest s
stay. Of the d others the ⌊0.3 d⌋ + 1 = p best are put into ⌊p / 10⌋ + 1 clusters by density peaks, and each cluster's
mean comes back behind the tokens that stay.
"""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from annotated_types import Ge

from foveate.core.clusters import density_peaks
from foveate.core.cut import Cut
from foveate.core.merge import average
from foveate.core.rank import spread, top
from foveate.errors import SettingError
from foveate.methods.base import Method, Preset
from foveate.methods.schedule import Budget, as_layers, half_up, scaled_counts
from foveate.methods.settings import Counts, Layers, Positions, Share, Tokens, numbering
from foveate.methods.stages import Arriving, Attention, Hidden, LayerStage, LayerView, Shape, Stage

__all__ = ["METHOD", "SparseVLM"]

LAYERS, TARGETS = (2, 6, 15), (300, 200, 110)  # the released setting that the authors call 192
REFERENCE = 576
RATED = Attention(rows="raters", layer="ran", heads="mean", over="mean")


class SparseVLM(Method):
    """Three cuts by the attention of the words that resemble the picture, with recycling.

    This is the first version (1.x). Different from the released code: clusters are found without its random noise, in
    float64; the raters' rows alone are read, under any kernel; batches; several images, each with its own raters;
    scores are float32, ties go to the lower index. The paper's ratio from the rank of the attention is not built, as
    the code uses fixed lists. Where a target is no smaller than what arrives, all stay: the code drops one token and
    brings it back at the end. Where no word stands out, all are raters; where there is no text, tokens at even steps
    stay, and nothing is recycled.

    Attributes:
        pruning_layers: Decoder layers whose attention is read; each cut is before the next layer. By default the code's
            (2, 6, 15) of 32 layers; a budget moves them with the depth.
        targets: Tokens that each cut keeps before recycling. By default the code's list for 192, whose true mean is
            206.5 with what comes back.
        reference: Vision tokens of the image that these counts are for; scaled for images of another size.
        retention: Instead of the targets: the mean share of an image's tokens that a decoder layer processes, what
            comes back included. What the cuts leave is in the ratio of 300, 200 and 110.
        tokens: The same as a number of tokens.
        recycle: Bring clusters of dropped tokens back; False leaves them out.
        positions: "reindex" renumbers the rows after each cut, as the code does; "keep" keeps position ids, and a
            cluster takes its centre's. Families with M-RoPE always keep.

    Raises:
        SettingError: If the lists differ in length.
    """

    name = "sparsevlm"
    schedule: ClassVar[tuple[str, ...]] = ("targets", "reference")

    pruning_layers: Layers | None = None
    targets: Counts | None = None
    reference: Annotated[int, Ge(1)] = REFERENCE
    retention: Share | None = None
    tokens: Tokens | None = None
    recycle: bool = True
    positions: Positions = "reindex"

    def check_settings(self) -> None:
        if self.retention is not None or self.tokens is not None:
            Budget(self.tokens, self.retention)
            if self.targets is not None:
                raise SettingError("Give either targets or a budget (retention=, tokens=), not both.")
            self._check_lengths(self.pruning_layers or LAYERS, TARGETS)
            return
        layers = LAYERS if self.pruning_layers is None else self.pruning_layers
        targets = TARGETS if self.targets is None else self.targets
        self._check_lengths(layers, targets)
        self._set(pruning_layers=layers, targets=targets)

    @staticmethod
    def _check_lengths(layers: Sequence[int], targets: Sequence[int]) -> None:
        if len(layers) != len(targets):
            raise SettingError(
                f"pruning_layers and targets must have the same length; got {len(layers)} and {len(targets)}."
            )

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.retention == 1:
            return ()
        stages = []
        for index, layer in enumerate(self._pruning_layers(shape.depth)):
            stages.append(
                LayerStage(
                    layer + 1,
                    reads=(RATED, Hidden()) if self.recycle else (RATED,),
                    count=partial(self._rows, shape.depth, index),
                    choose=partial(self._choose, shape.depth, index),
                    unit="image",
                    positions=numbering(self.positions),
                    flops=partial(self._flops, shape.depth, index),
                )
            )
        return tuple(stages)

    def _choose(self, depth: int, index: int, view: LayerView, count: int | None) -> Cut | None:
        assert count is not None
        if count >= len(view):
            return None
        if not view.text_behind:
            return Cut.take(spread(len(view), count, device=view.device), len(view))
        kept, pool, clusters = self._parts(depth, index, view.arriving)
        scores = view.attention
        if not clusters:
            return Cut.take(top(scores, kept), len(view))
        order = scores.sort(descending=True, stable=True).indices
        stay = order[:kept].sort().values
        recycled = order[kept : kept + pool]
        centres, cluster = density_peaks(view.hidden[recycled], clusters)
        parent = torch.full_like(order, -1)
        parent = parent.scatter(0, stay, torch.arange(kept, device=order.device))
        parent = parent.scatter(0, recycled, kept + cluster)
        cut = Cut.join(torch.cat((stay, recycled[centres])), parent)
        return cut.with_rows(average(view.hidden, cut))

    # -- how many rows each cut leaves -------------------------------------------------------------------------

    def _rows(self, depth: int, index: int, arriving: Arriving) -> int:
        """Rows that a cut leaves of an image, clusters among them."""
        kept, _, clusters = self._parts(depth, index, arriving)
        return kept + clusters

    def _parts(self, depth: int, index: int, arriving: Arriving) -> tuple[int, int, int]:
        """How many tokens stay, how many of the others are recycled, and the clusters they come back as."""
        arrive = arriving.tokens
        if self.targets is None:
            budget, cuts = Budget(self.tokens, self.retention), self._cuts(depth)
            rows = scaled_counts(budget, arriving.entered, arriving.started, depth, cuts, TARGETS, "SparseVLM")[index]
            return self._split(arrive, rows)
        target = self.targets[index]
        if target and arriving.entered != self.reference:
            target = max(1, half_up(target * arriving.entered / self.reference))
        if target >= arrive:
            return arrive, 0, 0
        return target, *self._recycled(arrive - target)

    def _split(self, arrive: int, rows: int) -> tuple[int, int, int]:
        """The same for a number of rows: one more token that stays makes as many rows, or one more."""
        if rows >= arrive:
            return arrive, 0, 0
        kept = rows
        pool, clusters = self._recycled(arrive - kept)
        while kept > 1 and kept + clusters > rows:
            kept -= 1
            pool, clusters = self._recycled(arrive - kept)
        return kept, pool, min(clusters, rows - kept)

    def _recycled(self, dropped: int) -> tuple[int, int]:
        """Of so many dropped tokens, how many are recycled, and as how many clusters."""
        if not self.recycle:
            return 0, 0
        pool = int(0.3 * dropped) + 1
        return pool, pool // 10 + 1

    def _pruning_layers(self, depth: int) -> tuple[int, ...]:
        if self.pruning_layers is None:
            return _at_depth(depth)
        return self.pruning_layers

    def _cuts(self, depth: int) -> tuple[int, ...]:
        """The layers that are the first to process fewer rows."""
        return tuple(layer + 1 for layer in self._pruning_layers(depth))

    def _flops(self, depth: int, index: int, arriving: Arriving, width: int) -> int:
        """The distances of what is recycled."""
        _, pool, clusters = self._parts(depth, index, arriving)
        return 2 * pool**2 * width if clusters else 0

    @classmethod
    def solved(
        cls,
        share: float,
        entered: int | None,
        depth: int,
        /,
        pruning_layers: Sequence[int] | None = None,
        **values: Any,
    ) -> Self:
        """Rows in the ratio of the code's whose mean meets the budget, solved for each image. See `Method.solved`."""
        layers = _at_depth(depth) if pruning_layers is None else as_layers(pruning_layers)
        method = cls(pruning_layers=layers, retention=share, **values)
        method._rows(depth, 0, Arriving.all_of(entered or REFERENCE))  # or a refusal
        return method


def _at_depth(depth: int) -> tuple[int, ...]:
    """2, 6, 15 of 32 layers, and alike at other depths: 2, 5, 13 of 28."""
    if depth < 6:
        raise SettingError(f"A three-cut schedule needs a decoder of six layers or more; got {depth}.")
    first = max(0, min(2, depth // 4 - 1))
    second = max(first + 1, round(6 * depth / 32))
    return first, second, max(second + 1, round(15 * depth / 32))


def _preset(
    budget: str,
    targets: tuple[int, int, int],
    recycle: bool,
    positions: Literal["reindex", "keep"],
    source: str,
) -> Preset:
    method = SparseVLM(pruning_layers=LAYERS, targets=targets, recycle=recycle, positions=positions)
    return Preset(f"sparsevlm/llava-1.5-7b/{budget}", method, 32, 576, source)


def _first(budget: int, targets: tuple[int, int, int]) -> Preset:
    source = "released code; its nominal budget leaves out a layer and what is recycled"
    return _preset(str(budget), targets, recycle=True, positions="reindex", source=source)


SparseVLM.presets = (
    _first(192, (300, 200, 110)),
    _first(128, (303, 110, 36)),
    _first(96, (238, 48, 26)),
    _first(64, (66, 30, 17)),
)

METHOD = SparseVLM
