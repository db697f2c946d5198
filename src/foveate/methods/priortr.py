"""PriorTR: score a token by the attention that the question adds to the attention that the model pays to it anyway.

Paper: PriorTR, ECCV 2026. Built from a description of the released code.

Before layer K, of the attention A of layer K − 1, mean over heads, over the image's columns j:

    Q_j ∝ A[null, j]              the row of the null token, the first after the image: it has not seen the question
    P_j ∝ mean over t of A[t, j]  the rows from the null token to the last one, or the last row alone
    S_j = P_j · log((P_j + 1e-10) / (Q_j + 1e-10))        Q and P each divided by their sum

The k tokens with the largest S stay: those that gained attention first, then those with none in P or Q, then those that
lost attention.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Attention, CacheStage, LayerView, Shape, Stage
from foveate.contract.cuts import OneCut
from foveate.core.rank import spread, top

EPSILON = 1e-10


class PriorTR(OneCut):
    """Keeps the tokens that gain most attention from the question, in one cut. Then cuts all caches to them.

    Each image has its own null token. Without text after an image there is none; then tokens at even steps stay.

    Attributes:
        layer: The code's prune_layer, 1 or more: the first layer that processes fewer tokens.
        keep: Share of the vision tokens that stays, truncated, at least one token. Usually 0.1111, the code's for
            Qwen3-VL.
        target: Instead of `keep`: the number of tokens of each image, the paper's k.
        retention, tokens: See `Cuts`.
        scope: Treat each "image" or video separately, or each "frame".
        question: The rows of P: "after" is the mean of all text rows after the image (the code's default for
            LLaVA-1.5), "but_last" the mean of all but the last (its ports), "last" the last row (for LLaVA-NeXT).
        heads: The "mean" over heads, or the "max" of their means over rows.
        kv: Cut the caches of earlier layers to the tokens that stay, as the code does.
    """

    name = "priortr"
    usual_keep = 0.1111

    layer: Annotated[int, Ge(1)] = 3
    question: Literal["after", "but_last", "last"] = "after"
    heads: Literal["mean", "max"] = "mean"
    kv: bool = True

    @property
    def reads(self) -> tuple[Attention, Attention]:  # type: ignore[override]  # depends on settings
        null = Attention(rows="null", layer="ran", heads=self.heads)
        return null, replace(null, rows=self.question)

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().steps(shape)
        if self.kv:
            return (*stages, CacheStage(first_layer=0))
        return stages

    def share_of(self, tokens: int, share: float) -> int:
        if self.target is not None:
            return max(1, self.target)
        return max(1, int(tokens * share))

    def pick(self, view: LayerView, count: int) -> Tensor:
        if not view.text_behind:
            return spread(len(view), count, device=view.device)
        null, question = self.reads
        return top(gain(view[question], view[null]), count)


def gain(question: Tensor, null: Tensor) -> Tensor:
    """S_j of two rows of attention, (tokens,) float32 each: each token's part of the KL divergence of P from Q."""
    p, q = _shares(question), _shares(null)
    return p * torch.log((p + EPSILON) / (q + EPSILON))


def _shares(attention: Tensor) -> Tensor:
    return attention / attention.sum().clamp(min=torch.finfo(torch.float32).tiny)
