"""DivPrune: keep the vision tokens that are least similar to one another.

Paper: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
arXiv:2503.02175. Reads only the tokens that enter the decoder: no attention, no CLS, no question.
"""

from typing import Literal

from torch import Tensor

from foveate.contract import Hidden, LayerView, Once, Part, Positions
from foveate.core.picks import max_min, pairs


class DivPrune(Once):
    """Keeps the subset whose smallest distance between two tokens is large (max-min diversity), by greedy picks.

        D_ij = 1 − cos(x_i, x_j)      first: argmax_j min_{i≠j} D_ij      then: argmax_j min_{i picked} D_ij

    x are the rows that enter the decoder, before layer 0. As in the authors' code, LLaVA-NeXT's newlines are among the
    candidates. They are all alike, so one or two of them stay.

    Differs from the released code in four points. Distances are float32 instead of the model's dtype, in which close
    tokens tie. A token is never picked twice, even if all distances are 0; the release repeats picks there. Vision
    tokens are found anywhere in the prompt. Batches and several images work, and each image is picked from separately.

    Attributes:
        keep, tokens, retention, positions: See `Once`. The default is the paper's main setting, 56 of 576 tokens.
            `keep` is the paper's r.
        scope: Pick from an image or a whole video ("image", as in the paper), or from each frame of a video ("frame").
    """

    name = "divprune"
    usual = 0.098
    reads = (Hidden(),)

    keep: Part | None = None
    positions: Positions = "reindex"
    scope: Literal["image", "frame"] = "image"

    def pick(self, view: LayerView, count: int) -> Tensor:
        return max_min(pairs(view.hidden, lambda cosines, _: 1 - cosines), count)
