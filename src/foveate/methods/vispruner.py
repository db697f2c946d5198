"""VisPruner: spend half of the budget on tokens that the CLS attends to, half on others without near-duplicates.

Paper: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv:2412.01818. With `important_ratio=1` it is FasterVLM, the first version of the same paper, which keeps
only the tokens that the CLS attends to.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Features, ImageStage, ImageView, Once, Part, Positions, Shape, Share, Stage, TowerAttention
from foveate.core.picks import cosines, pick_by_crop, thin


class VisPruner(Once):
    """Keeps important tokens by the CLS's attention, and diverse ones among the others, before the projector.

    Of T tokens, important = ⌊T · ratio⌋ are those with the most attention. The others form a list, by falling
    attention, which is thinned to T − important: round by round, the members at even places that are most similar to
    one at an odd place are removed (`foveate.core.picks.thin`). The order of the list affects the next round, so it is
    the released code's.

    Each crop of LLaVA-NeXT, and each frame of a video, gets its share of T. Similarity is that of the tower's features,
    even where tokens are dropped after the projector (images of LLaVA-NeXT and LLaVA-OneVision). Only the Qwen-VLs,
    tiles and videos of LLaVA-NeXT and OneVision are compared after the projector. In a tower without a CLS, attention
    is what all patches pay.

    Unlike in the released code, an odd number of important tokens and a T of a few tokens work; there they crash.
    Cosines are computed once, in float64, as multiples of 2⁻⁴⁰: close values decide the later rounds, and in a lower
    precision their order depends on the kernel. So the result is that of the released code run in float64. Its own
    float16 result cannot be reproduced; see the method's page.

    Attributes:
        important_ratio: The share of T for important tokens. 1 is FasterVLM.
        per_round: Most tokens that leave the list in a round.
        keep, tokens, retention, positions: See `Once`.
    """

    name = "vispruner"

    keep: Part | None = None
    positions: Positions = "reindex"
    important_ratio: Share = 0.5
    per_round: Annotated[int, Ge(1)] = 8

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        reads = (TowerAttention(by=shape.payer), Features())
        return (ImageStage(reads=reads, count=self.rows, pick=self._pick, positions=self.positions),)

    def _pick(self, view: ImageView, count: int) -> Tensor:
        def of_crop(tokens: Tensor, count: int) -> Tensor:
            important = int(count * self.important_ratio)
            order = view.attention[tokens].sort(descending=True, stable=True).indices
            if important == count:
                return order[:count]
            likeness = cosines(view[Features()][tokens], exact=True)
            diverse = thin(order[important:], likeness, count - important, self.per_round)
            return torch.cat((order[:important], diverse))

        return pick_by_crop(view.grids, view.features, count, of_crop)
