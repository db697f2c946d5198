"""VisionZip: keep the patches that the tower's CLS attends to, and merge the others into a few context tokens.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467. For an image of N patches, in the tower layer whose output is projected:

    s_j = Σ_heads A[CLS, j]            the D − 1 highest, and the CLS itself, are dominant
    rest_0, rest_step, …               are C targets, step = ⌊rest / C⌋
    t + mean of those nearest to t     is a context token, by the cosine of keys (mean over heads)

Order: the CLS, dominant patches in raster order, context tokens in the order of their targets. In a tower without a
CLS, a token's score is the attention it receives, and D patches are dominant. Each crop (LLaVA-NeXT) gets its share of
the counts by the tokens left of it, and no CLS enters. foveate's choice: with a budget, 10 of 64 rows are context
tokens, as in the README.
"""

from typing import Annotated, Literal

from annotated_types import Ge

from foveate.contract import Arriving, Cls, Count, Cut, ImageView, Once, Positions, Shape, Stage, half_up, merging_stage
from foveate.core.merge import dominant_and_contextual_by_crop, merge_rows

DOMINANT, CONTEXT, REFERENCE = 54, 10, 576  # the README's setting for LLaVA-1.5


class VisionZip(Once):
    """Keeps the patches that the CLS attends to, and merges the others, at the exit of the vision tower.

    Attributes:
        dominant: Rows that stay unmerged, at least 1; usually 54. If the CLS becomes a row, it is one of them.
        contextual: Rows into which all other tokens are merged, usually 10. With 0 the other tokens are dropped.
        reference: Vision tokens of the image that the counts are for, newlines included. Counts are scaled for other
            images.
        retention, tokens: Instead of the counts: a budget; see `Once`.
        positions: See `Positions`. The released code renumbers. If ids are kept, no CLS becomes a token.
        merge: "sum" adds the mean of the merged tokens to their target (the released code); "average" averages all.
    """

    name = "visionzip"
    halves_up = True
    schedule = ("dominant", "contextual")

    dominant: Annotated[int, Ge(1)] | None = None
    contextual: Count | None = None
    reference: Annotated[int, Ge(1)] = REFERENCE
    positions: Positions = "reindex"
    merge: Literal["sum", "average"] = "sum"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (merging_stage(shape, self.positions, lambda arriving: sum(self._counts(arriving)), pick=self._pick),)

    def _counts(self, arriving: Arriving) -> tuple[int, int]:
        """(dominant, contextual) rows of an image. A newline that the family adds counts as dominant."""
        if self.budget is not None:
            rows = self.rows(arriving)
            contextual = max(0, min(half_up(rows * CONTEXT / (DOMINANT + CONTEXT)), rows - 1))
            return rows - contextual, contextual
        scale = arriving.entered / self.reference
        dominant = DOMINANT if self.dominant is None else self.dominant
        contextual = CONTEXT if self.contextual is None else self.contextual
        return max(1, half_up(dominant * scale) - arriving.reserved), half_up(contextual * scale)

    def _pick(self, view: ImageView, count: int) -> Cut:
        with_cls = Cls() in view
        dominant = min(self._counts(view.arriving)[0], count)
        patches, contextual = dominant - with_cls, count - dominant
        cut = dominant_and_contextual_by_crop(view.grids, view.attention, view.keys, patches, contextual)
        return merge_rows(view.features, cut, self.merge, view.cls if with_cls else None)
