"""Ranking: which tokens stay, given their scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.errors import ShapeError


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Share `total` in proportion to some sizes, no share above its size.

    The remainder goes to the largest fractions, of equals to the first: 7 over 4, 4 and 2 is 3, 3 and 1. `total` is at
    most the sum of the sizes.
    """
    size_of_all = max(1, sum(sizes))
    shares = [total * size // size_of_all for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % size_of_all))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending. Ties go to the lower index.

    Shapes: (tokens,) of any real dtype -> (count,) int64.

    Raises:
        ShapeError: If `scores` is not one-dimensional or has fewer than `count` entries.
    """
    if scores.dim() != 1 or not 0 <= count <= scores.shape[0]:
        raise ShapeError(f"Cannot take the top {count} of scores of shape {tuple(scores.shape)}.")
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values


def ranks(scores: Tensor) -> Tensor:
    """The rank of each score in its row by falling score, ties by index: 0.3 0.9 0.3 have 1 0 2. (…, tokens) int64."""
    return torch.sort(scores, descending=True, stable=True).indices.argsort()


def put_marked_first(marked: Tensor) -> Tensor:
    """Indices of all tokens, the marked ones first, in order, then the others: 0 1 0 1 gives 1 3 0 2.

    If the number of marked tokens is known, slicing gives their indices without the host sync of `nonzero`. (…, tokens)
    bool -> int64.
    """
    return marked.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices


def ranks_in_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """The rank of each score within its group by falling score, ties by index.

    Example: scores 3 1 2 5 in groups 0 0 1 0 have ranks 1 2 0 0.

    Shapes: (tokens,) of any real dtype and (tokens,) int64 -> (tokens,) int64.
    """
    by_score = scores.sort(descending=True, stable=True).indices
    runs, order = groups[by_score].sort(stable=True)
    order = by_score[order]
    # Tokens are sorted by group, then by score. A token's rank is its place less that of its group's first token.
    place = torch.arange(len(scores), device=scores.device)
    return torch.zeros_like(order).scatter(0, order, place - torch.searchsorted(runs, runs))


def top_in_groups(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """The `count` highest scores, but at most ⌈count / groups⌉ of each group: (count,) int64, ascending.

    Fewer if groups are too small. It equals visiting tokens by falling score and skipping full groups: of scores 9 8 7
    1 in groups 0 0 0 1, two are 9 and 1.

    Args:
        scores: (tokens,) float.
        groups: (tokens,) int64 on the host, the group of each token, from 0 on.
        count: How many in total.
    """
    sizes = groups.bincount()
    most = -(-count // max(1, len(sizes)))
    full = ranks_in_groups(scores, groups.to(scores.device)) >= most
    return top(scores.masked_fill(full, float("-inf")), min(count, int(sizes.clamp(max=most).sum())))


def spread(tokens: int, count: int, device: torch.device | str | None = None) -> Tensor:
    """`count` indices spread evenly over `tokens`: the middles of equal cells, (count,) int64, ascending.

    Raises:
        ShapeError: If `count` is not in [0, tokens].
    """
    if not 0 <= count <= tokens:
        raise ShapeError(f"Cannot spread {count} indices over {tokens} tokens.")
    # Three of twelve tokens: the cells 0–3, 4–7 and 8–11 have their middles at 2, 6 and 10.
    step = torch.arange(count, device=device)
    return ((2 * step + 1) * tokens) // (2 * max(count, 1))


def spread_over(marked: Tensor, count: int | Tensor) -> Tensor:
    """Mark `count` of the marked tokens at even steps, or all if there are fewer: (tokens,) bool -> (tokens,) bool.

    Two of the four marked tokens of 1 0 1 1 1 are the second and the fourth of them: 0 0 1 0 1.
    """
    ordinal, number = marked.cumsum(dim=0), marked.sum().clamp(min=1)  # the first marked token has the ordinal 1
    return marked & (ordinal * count // number > (ordinal - 1) * count // number)


def into_runs(rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Place each row in the first free place of its run.

    Args:
        rows: (…, rows) int64, the run of each row.
        places: (…, places) int64, the run of each place, ascending. No run has fewer places than rows.

    Returns:
        (…, rows) int64 twice: the rows in the order of their places (within a run in their own order), and the places.
    """
    runs, order = rows.sort(stable=True)
    # A row's place within its run is its own place less that of the run's first row: runs 0 0 2 give 0 1 0.
    place = torch.arange(rows.shape[-1], device=rows.device)
    ordinal = place - torch.searchsorted(runs, runs)
    return order, torch.searchsorted(places, runs) + ordinal


def by_quota(scores: Tensor, quotas: Tensor, count: int, least: int = 0) -> Tensor:
    """Indices of the lowest scores of each frame, as many as its quota says and `count` in total, ascending.

    Quotas are rounded by largest remainders: 2.6, 1.3 and 1.1 for 5 tokens give 3, 1 and 1. If a frame has fewer tokens
    than its quota, the rest goes to the other frames, one token each in turn. Ties go to the lower index.

    Args:
        scores: (frames, tokens of each).
        quotas: (frames,), tokens of each, fractions included.
        count: How many in total.
        least: This many of each frame come first, as far as `count` allows; frames with larger quotas go first.

    Returns:
        (count,) int64, indices over all frames' tokens in order.
    """
    place = ranks(-scores)
    # (frames, tokens): the quota left at a token's turn. A quota of 2.6 gives 2.6, 1.6, 0.6, and then negative values.
    left = quotas[:, None] - place
    first = (place < least) * 2.0 * scores.numel()
    return top((left + first).flatten(), count)
