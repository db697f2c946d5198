"""MMTok: keep the vision tokens that best cover the question's words and the whole image.

Paper: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", ICLR 2026,
arXiv:2508.18264. Reads the tower's features, the decoder's input, and embeddings of the question.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from foveate.contract import Features, Hidden, ImageStage, LayerView, Once, Part, Positions, Shape, Stage, Text
from foveate.core.picks import cosines, cover
from foveate.core.tensors import blocks


class MMTok(Once):
    """Keeps the tokens that best cover two kinds of targets: the words of the question, and all vision tokens.

        P_tj = softmax_j(cos(word_t, x_j) / τ_text) / words        Q_ij = softmax_j(cos(v_i, v_j) / τ_vision) / tokens

    x are the rows that enter the decoder, v the tower's features of the same tokens. The rows of M = [P; α · Q] are the
    targets u. Each pick is the token j not yet picked with the largest Σ_u max(0, M_uj − covered_u), where covered_u is
    the largest M_uj of the picked tokens. Each image is covered separately. Words are all tokens of the text after it,
    template included.

    For projectors that merge or pool, and for videos, v are the features after the projector. A newline's are zeros.

    Unlike in the released code for LLaVA, 47 stop words are not excluded; its code for Qwen does not exclude them
    either. LLaVA-NeXT's packed tokens are picked from together; in the release each crop keeps its share.

    Attributes:
        keep, tokens, retention, positions: See `Once`.
        alpha: α, the weight of covering vision tokens relative to covering words.
        tau_text: τ_text; 0.01 for the Qwen-VLs in the paper.
        tau_vision: τ_vision.
    """

    name = "mmtok"
    reads = (Hidden(), Text())

    keep: Part | None = None
    positions: Positions = "reindex"
    alpha: Annotated[float, Ge(0)] = 0.5
    tau_text: Annotated[float, Gt(0)] = 0.02
    tau_vision: Annotated[float, Gt(0)] = 0.2

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (
            ImageStage(reads=(Features(),), look=lambda view: {"features": view[Features()]}),
            *super().steps(shape),
        )

    def pick(self, view: LayerView, count: int) -> Tensor:
        targets = coverage(view.text, view.hidden, view.notes["features"], self.tau_text, self.tau_vision, self.alpha)
        return cover(targets, count)


def coverage(
    words: Tensor, tokens: Tensor, features: Tensor, tau_text: float, tau_vision: float, alpha: float
) -> Tensor:
    """The coverage of each target by each token: (tokens, words + tokens) float32.

    Args:
        words: (words, width), embeddings of the text.
        tokens: (tokens, width), the decoder's input.
        features: (tokens, any), the tower's features of the same tokens.
        tau_text, tau_vision, alpha: See `MMTok`.
    """
    # Each target is a column. It sums to 1 over the tokens before the division.
    text = (cosines(tokens, exact=True, others=words) / tau_text).softmax(dim=0) / max(1, len(words))
    parts = [text.float()]
    for some in blocks(features, len(features)):
        to_tokens = (cosines(features, exact=True, others=some) / tau_vision).softmax(dim=0)
        parts.append((alpha * to_tokens / len(tokens)).float())
    return torch.cat(parts, dim=1)
