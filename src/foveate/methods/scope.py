"""SCOPE: keep the vision tokens that best cover all others, and prefer those with much attention from the CLS.

Paper: Deng et al., "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodal LLMs", NeurIPS 2025,
arXiv:2510.24214.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import ImageStage, ImageView, Once, Part, Positions, Shape, Stage
from foveate.core.picks import cosines, cover, pick_by_crop
from foveate.core.signals import Features, Signal, TowerAttention
from foveate.core.tensors import blocks


class Scope(Once):
    """Keeps the tokens that best cover all others (greedy facility location), each gain times the token's saliency.

    With the cosines C of the tower's features and the CLS's attention s, each pick is the token j not yet picked with
    the largest

        Σ_u max(0, C_uj − covered_u) · s_j^α        and then        covered_u = max(covered_u, C_uj)

    Coverage starts at 0, so negative cosines cover nothing.

    Each crop of LLaVA-NeXT, and each frame of a video, gets its share of the tokens. Similarity is that of the tower's
    features, even where tokens are dropped after the projector (images of LLaVA-NeXT and LLaVA-OneVision). Only the
    Qwen-VLs, tiles and videos of LLaVA-NeXT and OneVision are compared after the projector. In a tower without a CLS,
    saliency is the attention that all patches pay.

    Unlike in the released code, gains are float32, of cosines computed in float64. A count that the crops do not divide
    is met; the release loses the remainder. The release's second way of combining gain and saliency, by adding, is not
    implemented.

    Attributes:
        alpha: α, the exponent of the saliency. 1 is the released scripts' value. 0 is coverage alone, which reads no
            attention (foveate's addition).
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
        return (ImageStage(reads=reads, count=self.rows, pick=self._pick, positions=self.positions),)

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
