"""PruMerge+: PruMerge, and in addition tokens at even steps, so that no part of the image is left out.

Paper: see `foveate.methods.prumerge`. With r the share of patches that are outliers, and s = ⌊⌊1 / r⌋ / 3⌋, the patches
0, s, 2s, … below N − 1 stay too: about three times as many as the outliers. They follow the outliers, in raster order.

With a budget (foveate's addition), the number of tokens kept by score is the one from which that rule, with a step of
at least 1, is expected to come nearest to the count. Surplus steps are removed from the end, and missing tokens are
added by score.
"""

import math
from functools import cache

import torch
from torch import Tensor

from foveate.core.rank import ranks
from foveate.methods.prumerge import PruMerge, count_by_score


class PruMergePlus(PruMerge):
    """Keeps the tokens of PruMerge, and tokens at even steps besides the outliers.

    Attributes:
        neighbours, retention, tokens, positions: See `PruMerge`.
    """

    name = "prumerge_plus"

    def put_kept_first(self, scores: Tensor, outliers: int) -> tuple[Tensor, int]:
        tokens = len(scores)
        group, key = _group(scores, count_by_score(tokens, outliers), _step(tokens, outliers))
        return key.argsort(), int((group < 2).sum())  # host sync

    def so_many_first(self, scores: Tensor, kept: int) -> Tensor:
        _, key = _group(scores, *_balance(len(scores), kept))
        row = key.argsort().argsort()  # (tokens,): the place of each token when sorted by key
        return torch.where(row < kept, row, len(scores) + ranks(scores)).argsort()


def _group(scores: Tensor, top: int, step: int) -> tuple[Tensor, Tensor]:
    """Return why each token stays, (tokens,) int64: 0 its score, 1 an even step, 2 it does not stay; and a sort key.

    By this key the `top` ones come first by score, then every `step`-th of the others in raster order, then the rest by
    score.
    """
    tokens = len(scores)
    rank = ranks(scores)
    place = torch.arange(tokens, device=scores.device)
    even = (place % step == 0) & (place < tokens - 1)
    group = torch.where(rank < top, 0, torch.where(even, 1, 2))
    return group, group * tokens + torch.where(group == 1, place, rank)


@cache
def _balance(tokens: int, kept: int) -> tuple[int, int]:
    """The (top, step) expected to keep nearest to `kept` of the tokens; of equals the smaller top.

    Steps are coarse: surplus tokens are removed from their end, and missing ones are added by score.
    """

    def misses(top: int) -> float:
        even = math.ceil((tokens - 1) / _step(tokens, top))
        return abs(top + even * (1 - top / tokens) - kept)

    top = min(range(1, kept + 1), key=misses, default=0)
    return top, _step(tokens, max(1, top))


def _step(tokens: int, outliers: int) -> int:
    """The released code's step: ⌊⌊1 / ratio⌋ / 3⌋, at least 1."""
    return max(1, int(int(1 / (outliers / tokens)) / 3))
