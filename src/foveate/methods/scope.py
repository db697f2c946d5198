"""SCOPE: keep the vision tokens that cover all the others best, those that the CLS looks at before others.

Paper: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025,
arXiv:2510.24214.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import ImageStage, ImageView, Once, Part, Positions, Shape, Stage
from foveate.core.picks import cosine_flops, cosines, cover, pick_by_crop
from foveate.core.signals import Features, Signal, TowerAttention
from foveate.core.tensors import blocks


class Scope(Once):
    """Greedy facility-location coverage of all tokens, each candidate's gain times its saliency, before the projector.

    With cosines C of the tower's features and the CLS's attention s, each pick is the token j not yet picked with the
    largest

        Σ_u max(0, C_uj − covered_u) · s_j^α        and then        covered_u = max(covered_u, C_uj)

    Coverage starts at 0, so negative cosines cover nothing.

    LLaVA-NeXT's crops, and the frames of a video, each get their share of the tokens. Similarity is that of the tower's
    features, also where tokens are dropped behind the projector (pictures of LLaVA-NeXT and LLaVA-OneVision); only the
    Qwen-VLs, tiles and videos of LLaVA-NeXT and OneVision are compared behind it. In a tower without a CLS, attention
    is what all patches pay.

    Unlike in the released code, gains are float32, of cosines computed in float64, and a count that the crops do not
    divide is met: there the rest is lost. Its second way of joining gain and saliency, by adding, is left out.

    Attributes:
        alpha: α, the exponent of the saliency. 1 is the released scripts' value; 0 is coverage alone, which reads
            no attention (ours).
        keep, tokens, retention, positions: See `Once`.
    """

    name = "scope"

    keep: Part | None = None
    positions: Positions = "reindex"
    alpha: Annotated[float, Ge(0)] = 1.0

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        reads: tuple[Signal, ...] = (Features(),)
        if self.alpha:
            reads = (TowerAttention(by=shape.payer), Features())
        return (
            ImageStage(reads=reads, count=self.rows, pick=self._pick, positions=self.positions, flops=cosine_flops),
        )

    def _pick(self, view: ImageView, count: int) -> Tensor:
        def of_crop(tokens: Tensor, count: int) -> Tensor:
            rows = view[Features()][tokens]
            parts = [cosines(part, exact=True, others=rows).float() for part in blocks(rows, len(rows))]
            similarity = torch.cat(parts)
            del parts
            if not self.alpha:
                return cover(similarity, count)
            return cover(similarity, count, view.attention[tokens] ** self.alpha)

        return pick_by_crop(view.grids, view.features, count, of_crop)


METHOD = Scope
