"""VisionZip: keep the patches that the tower's CLS attends to, and merge the others into a few context tokens.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models", CVPR 2025,
arXiv:2412.04467. For an image of N patches, with the tower layer whose output is projected:

    s_j = Σ_heads A[CLS, j]            the D − 1 highest, and the CLS itself, are dominant
    rest_0, rest_step, …               are C targets, step = ⌊rest / C⌋
    t + mean of those nearest to t     is a context token, by the cosine of keys (mean over heads)

Order: the CLS, dominant patches in raster order, context tokens in the order of their targets.

Differences from the released code. Scores are float32, where it ranks a float16 softmax, and ties go to the lower
index. A tower without a CLS scores a token by the attention it receives, and D patches are dominant. On models with
crops (LLaVA-NeXT) the code reduces each crop before padding is cut off, and its CLS becomes a token. Here a crop gets
its share of the counts by the tokens that are left of it, and no CLS enters, as crops are read behind the projector.
Newlines are dropped, as there. Our choice: the share of context tokens with a budget (10 of 64, as in the README).
"""

from typing import Annotated, ClassVar, Literal

from annotated_types import Ge

from foveate.contract import (
    Arriving,
    Cls,
    Count,
    Entering,
    ImageStage,
    ImageView,
    Positions,
    Preset,
    Shape,
    Signal,
    Stage,
    TowerAttention,
    TowerKeys,
    half_up,
    numbering,
)
from foveate.core.cut import Cut
from foveate.core.grid import crops_of
from foveate.core.merge import average, behind_cls, dominant_and_contextual, join_parts, target_plus_mean
from foveate.core.rank import shared_out

__all__ = ["METHOD", "VisionZip"]

DOMINANT, CONTEXT, REFERENCE = 54, 10, 576  # the README's setting for LLaVA-1.5


class VisionZip(Entering):
    """Dominant patches and merged context, once, on the way out of the vision tower.

    Attributes:
        dominant: Rows that stay unmerged; the CLS, where it becomes one, counts. At least 1; usually 54.
        contextual: Rows into which all other tokens are merged, usually 10; with 0 these are dropped.
        reference: Vision tokens of the image that the counts are for, newlines among them; scaled for other images.
        retention, tokens: Instead of the counts; see `Entering`.
        positions: "reindex" numbers the rows anew, as the released code does; "keep" keeps position ids, and the CLS,
            which has none, does not become a token. Families with M-RoPE always keep.
        merge: "sum" adds the mean of the merged tokens to their target (the released code), "average" averages all.
    """

    name = "visionzip"
    schedule: ClassVar[tuple[str, ...]] = ("dominant", "contextual")

    dominant: Annotated[int, Ge(1)] | None = None
    contextual: Count | None = None
    reference: Annotated[int, Ge(1)] = REFERENCE
    positions: Positions = "reindex"
    merge: Literal["sum", "average"] = "sum"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.keeps_all:
            return ()
        reads: tuple[Signal, ...] = (TowerAttention(by="cls" if shape.cls else "patches"), TowerKeys())
        feeds_cls = self.positions == "reindex" and shape.renumbers
        if feeds_cls:
            reads = (*reads, Cls())
        numbers = numbering(self.positions)
        return (ImageStage(reads=reads, count=self._left, choose=self._choose, positions=numbers, ownerless=feeds_cls),)

    def _left(self, arriving: Arriving) -> int:
        return min(arriving.tokens, sum(self._counts(arriving)))

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

    def _choose(self, view: ImageView, count: int | None) -> Cut | None:
        assert count is not None
        if count == len(view):
            return None
        with_cls = Cls() in view
        dominant, _ = self._counts(view.arriving)
        rows, dominant = count - with_cls, min(dominant, count) - with_cls
        # Every crop gets its share of the rows by its tokens, and of the dominant ones by its rows.
        crops = crops_of(view.grids, len(view))
        rows_of = shared_out(rows, [len(crop) for crop in crops])
        dominant_of = shared_out(dominant, rows_of)
        parts = []
        for crop, few, high in zip(crops, rows_of, dominant_of, strict=True):
            tokens = crop.to(view.features.device)
            cut = dominant_and_contextual(view.attention[tokens], view.keys[tokens], high, few - high)
            parts.append((tokens, cut, high))
        whole = join_parts(len(view), parts)
        merged = target_plus_mean if self.merge == "sum" else average
        if not with_cls:
            return whole.with_rows(merged(view.features, whole))
        return behind_cls(view.cls, merged(view.features, whole), whole)


def _preset(model: str, budget: int, dominant: int, contextual: int, reference: int, source: str) -> Preset:
    method = VisionZip(dominant=dominant, contextual=contextual, reference=reference)
    return Preset(f"visionzip/{model}/{budget}", method, 32, reference, f"{source}; rows that enter the decoder")


# LLaVA-NeXT: five crops of 576 tokens, and a newline behind each of the 48 rows of the map.
VisionZip.presets = (
    _preset("llava-1.5-7b", 64, 54, 10, REFERENCE, "README of the released code"),
    _preset("llava-1.5-7b", 128, 108, 20, REFERENCE, "the ratio of the 64 setting"),
    _preset("llava-1.5-7b", 192, 162, 30, REFERENCE, "a public toolkit's setting"),
    _preset("llava-next-7b", 160, 135, 25, 2928, "paper, 27 + 5 a crop"),
    _preset("llava-next-7b", 320, 270, 50, 2928, "paper, 54 + 10 a crop"),
    _preset("llava-next-7b", 640, 540, 100, 2928, "paper, 108 + 20 a crop"),
)

METHOD = VisionZip
