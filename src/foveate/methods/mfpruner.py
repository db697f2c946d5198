"""MFPruner: three cues vote. Vision tokens with several votes stay, and a score fills up the count.

Paper: "Rethinking Attention Cues: Multi-Factor Guided Token Pruning for Efficient Vision-Language Understanding", code
dluo112/MFPruner. Reads attention in the vision tower, the decoder's input, and the question.

To keep n of N tokens, each cue votes for the n tokens that it rates highest:

    a   attention in the tower, scaled to about 0 to 1 over the image: (x − min + 1e-6) / (max − min + 1e-6)
    d   1 − (sum of the cosines with all others) / N, of the rows that enter the decoder
    r   −cos of the patch and the question in CLIP's space, scaled like a
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from foveate.contract import ImageStage, ImageView, LayerStage, LayerView, Once, Part, Positions, Shape, Stage
from foveate.core.picks import cosines, unlike_others
from foveate.core.rank import ranks, top
from foveate.core.signals import Features, Hidden, Text, TowerAttention
from foveate.methods.cdpruner import CLIP, PATCHES, WORDS, unlike_text

SMALL = 1e-6


class MFPruner(Once):
    """Keeps the tokens that two or three cues vote for, then others by falling score.

    With CLIP's encoders as a resource (see `CDPruner`) a, d and r vote. Tokens with three votes come first, then those
    with two, then all others; within a group the largest a + d + r. Without CLIP, as in the code for Qwen2.5-VL, a and
    d vote, and the others follow by their cosine with the mean embedding of the question, or by a + d if there is no
    text.

    Attributes:
        keep, tokens, retention, positions: See `Once`. The released code for LLaVA renumbers positions.
    """

    name = "mfpruner"
    reads = (Hidden(),)

    keep: Part | None = None
    positions: Positions = "keep"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        paid, picks = TowerAttention(by=shape.payer), super().steps(shape)
        if CLIP in shape.resources:
            look = ImageStage(reads=(paid, Features(), PATCHES), look=_look)
            return (look, LayerStage(0, reads=(WORDS,), look=lambda view: {"third": unlike_text(view)}), *picks)
        return (ImageStage(reads=(paid,), look=_look), LayerStage(0, reads=(Hidden(), Text()), look=_by_words), *picks)

    def pick(self, view: LayerView, count: int) -> Tensor:
        notes = view.notes
        cues = [scale(notes["attention"]), unlike_others(view.hidden)]
        if "third" in notes:
            cues.append(scale(notes["third"]))
        fill = notes["fill"] if "fill" in notes else torch.stack(cues).sum(dim=0)
        votes = torch.stack([ranks(cue) < count for cue in cues]).sum(dim=0)  # (tokens,)
        # Sort by votes (0 or 1 vote count as none), then by `fill`: (tokens,).
        return top(votes.masked_fill(votes < 2, 0) * len(fill) - ranks(fill), count)


def _look(view: ImageView) -> Mapping[str, Tensor]:
    notes = {"attention": view.attention}
    if PATCHES in view:
        return {**notes, "patches": view[PATCHES]}
    return notes


def _by_words(view: LayerView) -> Mapping[str, Tensor]:
    if not len(view.text):
        return {}
    mean = view.text.float().mean(dim=0, keepdim=True)
    return {"fill": cosines(view.hidden, exact=True, others=mean)[:, 0]}


def scale(cue: Tensor) -> Tensor:
    """Scale a cue, (tokens,), to about 0 to 1. If all values are equal, all become 1."""
    least, most = cue.aminmax()
    return (cue - least + SMALL) / (most - least + SMALL)
