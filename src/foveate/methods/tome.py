"""ToMe at the projector: average pairs of tokens with similar keys until the budget is met.

Paper: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461. Tokens in order are split into
A (even places) and B (odd places). Each token of A has an edge to the token of B with the largest cosine of keys (mean
over heads); the r best edges merge. A merged token is the mean of all patches in it, which is the paper's average
weighted by size.

The paper merges inside every block of a classifier. Here tokens merge once, after the feature layer, so the tower does
not change. This has four consequences. At most half of the tokens can merge at a time; if more must go, the merged
tokens (with the mean of their keys) are split and merged again. Attention is not weighted by size, because no attention
of the tower follows. The CLS is left out. Keys are those of the feature layer. Between rounds rows are ordered as in
the released code: those left of A by falling cosine, then those of B. At the end they are sorted by their first patch.
"""

from foveate.contract import Cut, ImageStage, ImageView, Once, Positions, Shape, Stage, TowerKeys
from foveate.core.merge import average, bipartite, by_first_token


class ToMe(Once):
    """Averages tokens with similar keys, once, at the exit of the vision tower. A baseline: pruning does better.

    Attributes:
        retention, tokens: How many rows are left; see `Once`. By default a third, 192 of 576.
        positions: See `Positions`. With "keep" a row has the position of the first patch in it.
    """

    name = "tome"
    usual = 1 / 3
    halves_up = True
    reads = (TowerKeys(),)

    positions: Positions = "reindex"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (ImageStage(reads=self.reads, count=self.rows, pick=merge_pairs, positions=self.positions),)


def merge_pairs(view: ImageView, count: int) -> Cut:
    """Merge an image's tokens to `count` rows."""
    # 576 tokens to 64: 288 edges, then 144, then 80 of the 144 tokens that are left.
    cut = bipartite(view.keys, count)
    while len(cut.source) > count:
        cut = cut.then(bipartite(average(view.keys, cut), count))
    cut = by_first_token(cut)  # sort only at the end: the order of rows within a round decides which merge
    return cut.with_rows(average(view.features, cut))
