"""PruMerge: keep the patches whose attention from the CLS is an outlier, and add the most similar patches to each.

Paper: Shang et al., "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models", ICCV 2025,
arXiv:2403.15388. In the tower's last layer, with queries q and keys k over its full width C, heads not split:

    a = softmax(q kᵀ / √C)[CLS, patches]            kept: those with a > Q3 + 1.5 · (Q3 − Q1), by falling a
    x_i + Σ a_j x_j over the 32 tokens j nearest to i by the cosine of k, kept ones included      for each kept i
    Σ a_j x_j over all that are not kept                                                          one more row, the last

The number of kept patches depends on the image; it is at least one. With a budget (foveate's addition) the budget sets
this number, and the highest a are kept. The last row takes the place of the most attended token that is dropped.
"""

from collections.abc import Callable
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
            order = self.so_many_first(scores, count - 1)
            kept = torch.full_like(order[0], count - 1)
            return self._merge(raster, count)(view.features, scores, view.keys, order, kept)
        ascending = scores.sort().values
        low, high = _quantile(ascending, 0.25), _quantile(ascending, 0.75)
        outliers = (scores > high + 1.5 * (high - low)).sum().clamp(min=1)
        order, kept = self.put_kept_first(scores, outliers.view(1))
        left = (kept + 1).clamp(max=tokens)
        return Cut.fewer(tokens, left, self._merge(raster, tokens), view.features, scores, view.keys, order, kept)

    def put_kept_first(self, scores: Tensor, outliers: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens in order, and how many stay.

        Args:
            scores: (tokens,) float32.
            outliers: Number of outliers, (1,) int64.

        Returns:
            All tokens, (tokens,) int64: first those that stay, then the others by falling score. And how many stay, an
            int64 tensor without dimensions.
        """
        kept = counts_by_score(len(scores), scores.device)[outliers][0]
        return scores.sort(descending=True, stable=True).indices, kept

    def so_many_first(self, scores: Tensor, kept: int) -> Tensor:
        """The order of tokens if exactly `kept` stay, (tokens,) int64."""
        return scores.sort(descending=True, stable=True).indices

    def _merge(self, raster: bool, rows: int) -> Callable[..., Cut]:
        """Return the function that makes the first `rows` rows: kept tokens with neighbours, then a row of all others.

        Rows after these are unused.
        """

        def merge(features: Tensor, scores: Tensor, keys: Tensor, order: Tensor, kept: Tensor) -> Cut:
            source = order[:rows]
            place = torch.arange(len(order), device=order.device)
            weighted = features.float() * scores[:, None]
            row_of = order.argsort().clamp(max=kept)  # (tokens,): dropped tokens go into row `kept`
            others = torch.where(row_of[:, None] == kept, weighted, 0).sum(dim=0)
            near = sum_of_nearest(weighted, keys, source, self.neighbours)
            merged = torch.where(place[:rows, None] == kept, others, features[source].float() + near)
            if raster:
                # Sort rows 0 to `kept` by their tokens, and unused rows after them. Then renumber `row_of` to match.
                moved = (source + (place[:rows] > kept) * len(order)).argsort()
                source, merged, row_of = source[moved], merged[moved], moved.argsort()[row_of]
            return Cut.merge(source, merged.to(features.dtype), row_of)

        return merge


def _quantile(ascending: Tensor, share: float) -> Tensor:
    """Interpolate between the nearest values, like numpy's percentile; `torch.quantile` cannot run on many samples."""
    place = share * (len(ascending) - 1)
    below = int(place)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (ascending[above] - ascending[below]) * (place - below)


def counts_by_score(tokens: int, device: torch.device) -> Tensor:
    """Tokens that stay by score, for each number of outliers, (tokens + 1,): ⌊N · ratio⌋ in Python's floats."""
    # At least one: for 196 tokens and one outlier the product is 0.999….
    return torch.tensor([max(1, int(tokens * (count / tokens))) for count in range(tokens + 1)], device=device)
