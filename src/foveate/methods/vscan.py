"""VScan: a local and a global scan of the tower with merging, then a cut in the middle of the decoder.

Paper: Zhang et al., "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models", TMLR 2026,
arXiv:2505.22654. For a mean of M tokens, T = 1.5 M enter the decoder, and M / 2 are left after half of its layers:

    local     the ⌊T / 2⌋ highest by the CLS attention of the tower's block 5 (of 24), but at most ⌈⌊T / 2⌋ / windows⌉
              of each window of 6 x 6 patches
    global    the highest others by the CLS attention of the feature layer, until T patches are kept
    merging   each other token joins the kept one with the nearest projected features, by cosine; a row is their mean
    decoder   before the middle layer, the tokens that get most attention from the prompt's last token in that layer
              stay
"""

import math
from functools import partial
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Arriving, ImageStage, ImageView, LayerStage, Once, Shape, Stage, attended, half_up
from foveate.contract.settings import Positions, Share
from foveate.core.cut import Cut
from foveate.core.grid import windows_of
from foveate.core.merge import average, join_to_nearest
from foveate.core.rank import top, top_in_groups
from foveate.core.signals import Attention, Signal, TowerAttention

LOCAL, DEPTH = 5, 24  # the block of the local scan, and the tower's depth that it is for
KEPT, NEWLINE = 2.0, 1.0  # notes: picked by a scan, and newline (noted by the family); 0 is merged


class VScan(Once):
    """Keeps tokens of a local and a global scan of the tower, merges the others, and cuts again in the decoder.

    Attributes:
        retention, tokens: The mean that a decoder layer processes; see `Once`. By default a third, 192 of 576.
        entry: Rows that enter the decoder, as a multiple of the mean.
        keep: Instead of a budget: the share of the tokens that enters, and the share of these that the second cut
            leaves. Both are truncated.
        layer: The decoder layer before which the second cut is. None: half the depth.
        window: Side of the windows of the local scan, in tokens: 6 for LLaVA and 4 for Qwen2.5-VL.
        positions: See `Positions`. The released code renumbers for LLaVA.
    """

    name = "vscan"
    usual = 1 / 3

    keep: tuple[Share, Share] | None = None
    entry: Annotated[float, Ge(1)] = 1.5
    layer: Annotated[int, Ge(1)] | None = None
    window: Annotated[int, Ge(1)] = 6
    positions: Positions = "reindex"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        near, far = TowerAttention(by=shape.payer, block=LOCAL, of=DEPTH), TowerAttention(by=shape.payer)
        paid = Attention(rows="last", layer="next", heads="mean")
        layer = max(1, shape.depth // 2) if self.layer is None else self.layer
        enter, stay = (partial(self._rows, shape.depth, layer, place) for place in (0, 1))
        return (
            ImageStage(reads=(near, far), look=partial(self._scan, enter, near, far)),
            ImageStage(side="behind", count=enter, pick=merge_others, positions=self.positions),
            LayerStage(layer, reads=(paid,), count=stay, score=attended, unit="image", positions=self.positions),
        )

    def _rows(self, depth: int, layer: int, place: int, arriving: Arriving) -> int:
        """Rows of an image that enter the decoder (place 0), or that are left after the second cut (place 1)."""
        full = arriving.entered
        if self.keep is not None:
            entering = int(full * self.keep[0])
            left = int(entering * self.keep[1])
        else:
            mean = self.mean(arriving)
            # Leave enough of the budget for at least one row in each layer after the cut.
            most = (depth * mean - (depth - layer)) / layer
            entering = max(1, min(math.ceil(self.entry * mean - 0.5), int(most + 1e-6), full))
            left = min(entering, max(1, half_up((depth * mean - layer * entering) / max(1, depth - layer))))
        return min(arriving.tokens, max(1, (entering, left)[place] - arriving.reserved))

    def _scan(self, enter: partial[int], near: Signal, far: Signal, view: ImageView) -> dict[str, Tensor]:
        """Note which tokens stay."""
        total = min(len(view), enter(view.arriving))
        local = top_in_groups(view[near], windows_of(view.grids, self.window, len(view)), total // 2)
        far_scores = view[far]
        others = top(far_scores.scatter(0, local, float("-inf")), total - len(local))
        return {"picked": torch.zeros_like(far_scores).scatter(0, torch.cat((local, others)), KEPT)}


def merge_others(view: ImageView, count: int) -> Cut:
    """Keep the picked tokens, and merge the others into the most similar ones. Only a closing newline is kept."""
    picked = view.notes["picked"]
    cut = join_to_nearest(view.features, top(picked, count), picked != NEWLINE)
    return cut.with_rows(average(view.features, cut))
