"""CDPruner: keep vision tokens that differ from one another and that are relevant to the question.

Paper: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs",
NeurIPS 2025, arXiv:2506.10967. Reads the decoder's input and embeddings of the question.
"""

from typing import Literal

import torch
from torch import Tensor

from foveate.contract import ImageStage, LayerStage, LayerView, Once, Part, Positions, Shape, Stage
from foveate.core.merge import of_length_one
from foveate.core.picks import cosines, determinantal, pairs
from foveate.core.signals import Features, Hidden, Resource, Text

CLIP = "clip"
PATCHES, WORDS = Resource(CLIP), Resource(CLIP, of="text")
SMALL = 1e-6  # added to every relevance, so that none is 0


class CDPruner(Once):
    """Keeps diverse tokens that are relevant to the question: the greedy subset with the largest determinant.

        K_ij = r_i · cos(x_i, x_j) · r_j

    x are the rows that enter the decoder, before layer 0. The relevance r compares a token with all text after the
    sample's last image, template included. It is scaled to about 0 to 1 over all images of a sample:

        r = (s − min s + 1e-6) / (max s − min s)

    With CLIP's encoders (`foveate.drop(…, resources={"clip": foveate.families.clip.ClipEncoder(…)})`), s is −cos of a
    patch and the text in CLIP's space. The sign is the released code's: there patches about the text are *less* similar
    to it. Without CLIP, s is the mean cosine of a token and the text's embeddings, as ports do for towers
    without a text encoder. Without text after the images all tokens are equally relevant, and only diversity counts.

    Unlike in the released code, LLaVA-NeXT's packed tokens are picked from together; the release keeps a fifth from
    each of five crops. With CLIP, newlines get the lowest relevance. Tokens beyond the rank of K are chosen by
    relevance; the release keeps fewer tokens than requested there.

    Attributes:
        keep, tokens, retention, positions: See `Once`.
        scope: Pick from an image or a whole video ("image"), or from each frame of a video ("frame").
    """

    name = "cdpruner"
    reads = (Hidden(),)

    keep: Part | None = None
    positions: Positions = "reindex"
    scope: Literal["image", "frame"] = "image"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        if CLIP in shape.resources:
            encode = ImageStage(reads=(Features(), PATCHES), look=lambda view: {"patches": view[PATCHES]})
            return (
                encode,
                LayerStage(0, reads=(WORDS,), look=lambda view: {"relevance": relevance(unlike_text(view))}),
                *super().steps(shape),
            )
        return (
            LayerStage(0, reads=(Hidden(), Text()), look=lambda view: {"relevance": relevance(like_text(view))}),
            *super().steps(shape),
        )

    def pick(self, view: LayerView, count: int) -> Tensor:
        weight = view.notes["relevance"]
        places = torch.arange(len(weight), device=weight.device)

        def kernel(likeness: Tensor, tokens: Tensor) -> Tensor:
            # Set a token's cosine with itself to exactly 1. Otherwise, if all relevances are equal, rounding errors
            # would decide the first pick.
            likeness = torch.where(tokens[:, None] == places, likeness.round(), likeness)
            return weight[tokens, None] * likeness * weight

        return determinantal(pairs(view.hidden, kernel), count, fill=weight)


def unlike_text(view: LayerView) -> Tensor:
    """−cos of each patch and the text in CLIP's space, (tokens,) float32. A newline gets the lowest of all patches."""
    patches = view.notes["patches"]
    likeness = of_length_one(patches) @ view[WORDS].float()
    is_patch = patches.any(dim=1)  # newline rows are zeros
    return torch.where(is_patch, -likeness, (-likeness).masked_fill(~is_patch, float("inf")).amin())


def like_text(view: LayerView) -> Tensor:
    """The mean cosine of each token and the embeddings of the text, (tokens,) float32."""
    likeness = cosines(view.hidden, exact=True, others=view.text)
    return (likeness.sum(dim=1) / max(1, len(view.text))).float()


def relevance(scores: Tensor) -> Tensor:
    """Scale scores, (tokens,) float32, to about 1e-6 to 1. If all scores are equal, all become 1."""
    least = scores.amin()
    spread = (scores.amax() - least).clamp(min=SMALL)  # equal scores differ by rounding errors only
    return (scores - least + SMALL) / spread
