"""DART: choose a few pivots, then keep the vision tokens least similar to them. Duplication matters, not importance.

Paper: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", EMNLP
2025, arXiv:2502.11494.

Before layer K, with the keys k of layer K − 1 after RoPE, and f the residual stream after the model's last norm:
the pivots are the 4 vision and the 4 text tokens with the largest ‖k‖₁ over all key heads. Each pivot in turn takes the
m = ⌊B / 8⌋ vision tokens with the lowest cos(f, f_pivot) among those not yet taken. These and the 4 vision pivots stay:
8m + 4 for a budget of B tokens. The pivots' columns in the prompt decide their order; see `visiting_order`.
"""

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import normalize

from foveate.contract import Columns, Count, KeyNorms, LayerView, Normed, Pivots, Signal
from foveate.contract.cuts import OneCut
from foveate.core.rank import put_marked_first


class DART(OneCut):
    """Keeps the tokens least similar to a few pivots, in one cut. Each image has its own pivots.

    Attributes:
        layer: The paper's K, 1 or more: the first layer that processes fewer tokens.
        keep: The code's 1 − R: B is this share of the vision tokens. Usually 0.222, for the paper's R = 77.8 %.
        target: Instead of `keep`: B as a number of tokens. 8 · ⌊B / 8⌋ + 4 tokens stay: 132 for 128.
        retention, tokens: Instead of `keep`: a budget, met exactly; see `Cuts`. The first pivots take the remainder of
            the division.
        scope: Treat each "image" or video separately, or each "frame".
        pivots: Number of vision pivots.
        text_pivots: Number of text pivots. With 0 the choice does not depend on the question.
    """

    name = "dart"
    usual_keep = 0.222

    pivots: Annotated[int, Ge(1)] = 4
    text_pivots: Count = 4

    @property
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        text = (Pivots(self.text_pivots),) if self.text_pivots else ()
        return KeyNorms(), Normed(), Columns(self.text_pivots), *text

    def share_of(self, tokens: int, share: float) -> int:
        most = tokens * share
        if self.target is not None:
            most = max(0, min(self.target, tokens - self.pivots))
        visited = self.pivots + self.text_pivots
        return min(tokens, int(most // visited) * visited + self.pivots)

    def pick(self, view: LayerView, count: int) -> Tensor:
        text = view.pivots if self.text_pivots and view.text_behind else None
        return least_alike(view.key_norms, view.normed, text, view.columns, self.pivots, count)


def least_alike(
    norms: Tensor, features: Tensor, text: Tensor | None, columns: Tensor, pivots: int, count: int
) -> Tensor:
    """The indices of the `count` vision tokens that stay, pivots included: (count,) int64, ascending.

    Args:
        norms: (tokens,) float32, the key norms that choose the pivots.
        features: (tokens, width), compared by cosine.
        text: (text pivots, width), the features of the text pivots. None: no text pivots.
        columns: (tokens + text pivots,) int64, their columns in the prompt, which set the order of the pivots.
        pivots, count: Number of vision pivots, and number of tokens to keep in all.
    """
    chosen = norms.sort(descending=True, stable=True).indices[: min(pivots, count)]
    visited, places = features[chosen], columns[chosen]
    if text is not None:
        visited = torch.cat((visited, text.to(visited.dtype)))
        places = torch.cat((places, columns[len(norms) :]))
    visited = visited[visiting_order(places)]
    likeness = normalize(features.float(), dim=-1) @ normalize(visited.float(), dim=-1).T  # (tokens, visited)
    taken = torch.zeros_like(norms, dtype=torch.bool).scatter(0, chosen, True)
    # 20 tokens for 8 pivots: the first four take 3 each, the others 2.
    each, rest = divmod(count - len(chosen), len(visited))
    for place in range(len(visited)):
        # The least similar tokens that no pivot has taken yet: (tokens,) -> (each or each + 1,).
        scores = likeness[:, place].masked_fill(taken, float("inf"))
        least = scores.sort(stable=True).indices[: each + (place < rest)]
        taken = taken.scatter(0, least, True)
    return put_marked_first(taken)[:count]


def visiting_order(columns: Tensor) -> Tensor:
    """The order in which CPython iterates a set of 8 columns: by column modulo 32. (pivots,) int64 indices.

    Columns 40, 64 and 8 have the remainders 8, 0 and 8, and are visited as 64, 40, 8.
    """
    return (columns % 32).sort(stable=True).indices
