"""VisionZip: keep the patches that the tower's CLS attends to, and merge the others into a few context tokens.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467. For an image of N patches, with the tower layer whose output is projected:

    s_j = Σ_heads A[CLS, j]            the D − 1 highest, and the CLS itself, are dominant
    rest_0, rest_step, …               are C targets, step = ⌊rest / C⌋
    t + mean of those nearest to t     is a context token, by the cosine of keys (mean over heads)

Order: the CLS, dominant patches in raster order, context tokens in the order of their targets. A tower without a CLS
scores a token by the attention it receives, and D patches are dominant. A crop (LLaVA-NeXT) gets its share of the
counts by the tokens that are left of it, and no CLS enters. Our choice: the share of context tokens with a budget (10
of 64, as in the README).
"""

from typing import Annotated, Literal

from annotated_types import Ge

from foveate.contract import Arriving, Cls, Count, Cut, ImageView, Once, Positions, Shape, Stage, half_up, merging_stage
from foveate.core.merge import dominant_and_contextual_by_crop, merge_rows

DOMINANT, CONTEXT, REFERENCE = 54, 10, 576  # the README's setting for LLaVA-1.5


class VisionZip(Once):
    """Dominant patches and merged context, once, on the way out of the vision tower.

    Attributes:
        dominant: Rows that stay unmerged; the CLS, where it becomes one, counts. At least 1; usually 54.
        contextual: Rows into which all other tokens are merged, usually 10; with 0 these are dropped.
        reference: Vision tokens of the image that the counts are for, newlines among them; scaled for other images.
        retention, tokens: Instead of the counts; see `Once`.
        positions: See `Positions`; the released code numbers anew. Where ids are kept no CLS becomes a token.
        merge: "sum" adds the mean of the merged tokens to their target (the released code), "average" averages all.
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
        """(dominant, contextual) rows of an image; a newline that the family adds by itself counts as dominant."""
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


METHOD = VisionZip
