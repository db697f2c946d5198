"""VisPruner: half of the budget for what the CLS looks at, half for what is left once near-duplicates are out.

Paper: Zhang et al., "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs",
ICCV 2025, arXiv:2412.01818. With `important_ratio=1` it is FasterVLM, the first version of the same paper, which keeps
what the CLS looks at and nothing else.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Features, ImageStage, ImageView, Once, Part, Positions, Shape, Share, Stage, TowerAttention
from foveate.core.picks import cosine_flops, cosines, pick_by_crop, thin


class VisPruner(Once):
    """Important tokens by the CLS's attention, and diverse ones among the others, before the projector.

    Of T tokens, important = ⌊T · ratio⌋ are those with the most attention. The others, by falling attention, are a list
    that is thinned out to T − important: round by round, the members at even places that are most like one at an odd
    place leave (`foveate.core.picks.thin`). The list's order feeds the next round, so it is the released code's.

    LLaVA-NeXT's crops, and the frames of a video, each get their share of T. Similarity is that of the tower's
    features, also where tokens are dropped behind the projector (pictures of LLaVA-NeXT and LLaVA-OneVision); only the
    Qwen-VLs, tiles and videos of LLaVA-NeXT and OneVision are compared behind it. In a tower without a CLS, attention
    is what all patches pay.

    Unlike in the released code, an odd number of important tokens and a T of a few tokens work (there they crash), and
    the cosines are computed once, in float64, as multiples of 2⁻⁴⁰: near-ties decide the later rounds, and a lower
    precision decides them by the kernel. So sets are those of the code run in float64. Its own, in float16, cannot be
    had again: see the page.

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
        flops = cosine_flops if self.important_ratio < 1 else None
        return (ImageStage(reads=reads, count=self.rows, pick=self._pick, positions=self.positions, flops=flops),)

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


METHOD = VisPruner
