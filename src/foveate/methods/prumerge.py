"""PruMerge: keep the patches whose attention from the CLS is an outlier, and add the most similar patches to each.

Paper: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
arXiv:2403.15388. In the tower's last layer, with queries q and keys k over its full width C, heads not split:

    a = softmax(q kᵀ / √C)[CLS, patches]            kept: those with a > Q3 + 1.5 · (Q3 − Q1), by falling a
    x_i + Σ a_j x_j over the 32 tokens j nearest to i by the cosine of k, kept ones included      for each kept i
    Σ a_j x_j over all that are not kept                                                          one more row, the last

The number of kept patches depends on the image; it is at least one. With a budget (foveate's addition) the budget sets
this number, and the highest a are kept. The last row takes the place of the most attended token that is dropped.
"""

from functools import partial

import torch
from torch import Tensor

from foveate.contract import Count, Cut, ImageStage, ImageView, Once, Positions, Shape, Stage, TowerAttention, TowerKeys
from foveate.core.merge import sum_of_nearest


class PruMerge(Once):
    """Keeps outliers of the CLS's attention and merges similar tokens into them, at the exit of the vision tower.

    Attributes:
        neighbours: How many of the nearest tokens are added to each kept one. 0 prunes without merging into kept
            tokens.
        retention, tokens: Instead of the outliers: an exact count, which includes the last row; see `Once`.
        positions: See `Positions`. The released code renumbers. If ids are kept, rows are in raster order.
    """

    name = "prumerge"
    halves_up = True

    neighbours: Count = 32
    positions: Positions = "reindex"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        paid = TowerAttention(by=shape.payer, layer=1, heads="joined")
        keys = TowerKeys(layer=1, heads="joined")
        raster = not shape.numbers_anew(self.positions)
        count = None if self.budget is None else self.rows
        choose = partial(self._choose, raster)
        return (ImageStage(reads=(paid, keys), count=count, choose=choose, positions=self.positions),)

    def _choose(self, raster: bool, view: ImageView, count: int | None) -> Cut | None:
        tokens, scores = len(view), view.attention
        if count == tokens:
            return None
        if count is not None:
            return self._merge(raster, view, self.so_many_first(scores, count - 1), count - 1)
        ascending = scores.sort().values
        low, high = _quantile(ascending, 0.25), _quantile(ascending, 0.75)
        outliers = max(1, int((scores > high + 1.5 * (high - low)).sum()))  # host sync
        order, kept = self.put_kept_first(scores, outliers)
        return None if kept + 1 >= tokens else self._merge(raster, view, order, kept)

    def put_kept_first(self, scores: Tensor, outliers: int) -> tuple[Tensor, int]:
        """Return all tokens, (tokens,) int64, first those that stay, then others by falling score; and how many stay.

        `scores` is (tokens,) float32.
        """
        return self.so_many_first(scores, 0), count_by_score(len(scores), outliers)

    def so_many_first(self, scores: Tensor, kept: int) -> Tensor:
        """The order of tokens if exactly `kept` stay, (tokens,) int64."""
        return scores.sort(descending=True, stable=True).indices

    def _merge(self, raster: bool, view: ImageView, order: Tensor, kept: int) -> Cut:
        """Make a row of each of the first `kept` tokens and its neighbours, then a row of all others."""
        scores, source = view.attention, order[: kept + 1]
        weighted = view.features.float() * scores[:, None]
        row_of = order.argsort().clamp(max=kept)  # (tokens,): dropped tokens go into row `kept`
        merged = view.features[source].float() + sum_of_nearest(weighted, view.keys, source, self.neighbours)
        merged[kept] = torch.where(row_of[:, None] == kept, weighted, 0).sum(dim=0)
        if raster:  # sort the rows by their tokens, and renumber `row_of` to match
            moved = source.argsort()
            source, merged, row_of = source[moved], merged[moved], moved.argsort()[row_of]
        return Cut.merge(source, merged.to(view.features.dtype), row_of)


def _quantile(ascending: Tensor, share: float) -> Tensor:
    """Interpolate between the nearest values, like numpy's percentile; `torch.quantile` cannot run on many samples."""
    place = share * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def count_by_score(tokens: int, outliers: int) -> int:
    """Tokens that stay by score: ⌊N · ratio⌋ in Python's floats."""
    return max(1, int(tokens * (outliers / tokens)))  # at least one: for 196 tokens and one outlier it is 0.999….
