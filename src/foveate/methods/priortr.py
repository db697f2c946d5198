"""PriorTR: what the question adds to the attention that the model pays to a picture anyway.

Paper: PriorTR, ECCV 2026. Built from a description of the released code.

Before layer K, of the attention A of layer K − 1, mean over heads, over the image's columns j:

    Q_j ∝ A[null, j]              the row of the null token, the first behind the image: it has not seen the question
    P_j ∝ mean over t of A[t, j]  the rows from the null token to the last one, or the last row alone
    S_j = P_j · log((P_j + 1e-10) / (Q_j + 1e-10))        Q and P each divided by their sum

The k tokens with the largest S stay: gained attention first, then what neither looks at, then what lost attention.
"""

from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Attention, CacheStage, LayerStage, LayerView, OneCut, Preset, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.rank import spread, top

__all__ = ["METHOD", "PriorTR", "gained"]

EPSILON = 1e-10


class PriorTR(OneCut):
    """One cut by gained attention; then all caches are cut to the same tokens.

    Different from the released code: scores stay float32 (the code rounds them to half precision, so that small ones
    vanish or tie), ties go to the lower index; batches; several images, each with its own null token and its own share
    (the code scores the first image only). The rows of the question include the prompt's last token for every model, as
    the code has it for LLaVA, unless question="but_last": its ports for Qwen and InternVL leave it out, and so do the
    presets for Qwen3-VL. The variant with a second prefill is not built. Without any text behind an image there is no
    null token: then tokens at even steps stay.

    Attributes:
        layer: The code's prune_layer, 1 or more: the first layer that processes fewer tokens.
        keep: Share of the vision tokens that stays, truncated; at least one. Usually 0.1111, the code's for Qwen3-VL.
        target: Instead of `keep`: their number for each image, the k of the paper.
        retention: Instead: the mean share of an image's tokens that a decoder layer processes.
        tokens: The same as a number of tokens.
        question: Whose attention P is: "after" is the mean of all rows of text behind the image (the code's default for
            LLaVA-1.5), "but_last" that of all but the last (its ports), "last" the last row (for LLaVA-NeXT).
        heads: The "mean" over heads, or the "max" of their means over rows.
        kv: Cut the caches of earlier layers to the tokens that stay, as the code does.
        scope: Score each "image" or video by itself, or each "frame".

    Raises:
        SettingError: If more than one of `target` and a budget is given.
    """

    name = "priortr"
    usual_keep: ClassVar[float] = 0.1111

    layer: Annotated[int, Ge(1)] = 3
    question: Literal["after", "but_last", "last"] = "after"
    heads: Literal["mean", "max"] = "mean"
    kv: bool = True

    @property
    def _null(self) -> Attention:
        return Attention(rows="null", layer="ran", heads=self.heads)

    @property
    def _question(self) -> Attention:
        return Attention(rows=self.question, layer="ran", heads=self.heads)

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        if self.retention == 1:
            return ()
        reads = (self._null, self._question)
        count = partial(self.count, shape.depth)
        cut = LayerStage(self.layer, reads=reads, count=count, choose=self._choose, unit=self.scope)
        if not self.kv:
            return (cut,)
        return (cut, CacheStage(first_layer=0))

    def own_count(self, tokens: int) -> int:
        if self.target is not None:
            return max(1, self.target)
        return max(1, int(tokens * self.share))

    def _choose(self, view: LayerView, count: int | None) -> Cut | None:
        assert count is not None
        if count >= len(view):
            return None
        if not view.text_behind:
            return Cut.take(spread(len(view), count, device=view.device), len(view))
        scores = gained(view[self._question], view[self._null])
        return Cut.take(top(scores, count), len(view))


def gained(question: Tensor, null: Tensor) -> Tensor:
    """S_j of two rows of attention, (tokens,) float32 each: each token's part of the divergence of P from Q."""
    p, q = _shares(question), _shares(null)
    return p * torch.log((p + EPSILON) / (q + EPSILON))


def _shares(attention: Tensor) -> Tensor:
    return attention / attention.sum().clamp(min=torch.finfo(torch.float32).tiny)


def _llava(model: str, target: int, vision_tokens: int, question: Literal["after", "last"]) -> Preset:
    method = PriorTR(target=target, question=question)
    return Preset(f"priortr/{model}/{target}", method, 32, vision_tokens, "released code, tokens left at layer 3")


def _qwen(keep: float) -> Preset:
    method, source = PriorTR(keep=keep, question="but_last"), "released code, share left at layer 3"
    return Preset(f"priortr/qwen3-vl-8b/{keep:.1%}", method, 36, None, source)


PriorTR.presets = (
    *(_llava("llava-1.5-7b", target, 576, "after") for target in (192, 128, 64)),
    _llava("llava-next-7b", 320, 2880, "last"),
    *(_qwen(keep) for keep in (0.3333, 0.2222, 0.1111)),
)

METHOD = PriorTR
