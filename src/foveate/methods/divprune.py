"""DivPrune: keep the vision tokens that are least alike, whatever they show.

Paper: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025,
arXiv:2503.02175. Reads the tokens that enter the decoder and nothing else: no attention, no CLS, no question.
"""

from typing import Literal

from torch import Tensor

from foveate.contract import Hidden, LayerView, Once, Part, Positions
from foveate.core.picks import cosine_flops, max_min, pairs


class DivPrune(Once):
    """The subset whose smallest distance between two tokens is large (max-min diversity), by greedy picks.

        D_ij = 1 − cos(x_i, x_j)      first: argmax_j min_{i≠j} D_ij      then: argmax_j min_{i picked} D_ij

    x are the rows that enter the decoder, before layer 0. So LLaVA-NeXT's packed tokens are picked from as in the
    authors' code, newlines among them: these are all alike, and one or two stay.

    Unlike in the released code, distances are float32 (there the model's dtype, in which near tokens tie); a token is
    never picked twice, also where all distances are 0 (there the code repeats picks); tokens are found wherever they
    stand in the prompt; and batches and several images work, each image by itself.

    Attributes:
        keep, tokens, retention, positions: See `Once`. The default is the paper's headline, 56 of 576 tokens. The
            paper's r is `keep`.
        scope: Pick from an image or a whole video ("image", as in the paper), or from each frame of a video ("frame").
    """

    name = "divprune"
    usual = 0.098
    reads = (Hidden(),)
    flops = staticmethod(cosine_flops)  # the picks add 2 · k · N

    keep: Part | None = None
    positions: Positions = "reindex"
    scope: Literal["image", "frame"] = "image"

    def pick(self, view: LayerView, count: int) -> Tensor:
        return max_min(pairs(view.hidden, lambda cosines, _: 1 - cosines), count)


METHOD = DivPrune
