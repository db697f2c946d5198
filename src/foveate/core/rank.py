"""Which tokens stay, once each has a score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.errors import ShapeError


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` shared out in proportion to some sizes, none above its own; what rounding leaves goes to the largest
    remainders, the first of equals: 7 over 4, 4 and 2 are 3, 3 and 1.

    `total` is at most the sum of the sizes.
    """
    size_of_all = max(1, sum(sizes))
    shares = [total * size // size_of_all for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % size_of_all))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def top(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest scores, ascending; ties go to the lower index.

    Shapes: (tokens,) of any real dtype -> (count,) int64.

    Raises:
        ShapeError: If `scores` is not one-dimensional or has fewer than `count` entries.
    """
    if scores.dim() != 1 or not 0 <= count <= scores.shape[0]:
        raise ShapeError(f"Cannot take the top {count} of scores of shape {tuple(scores.shape)}.")
    order = torch.sort(scores, descending=True, stable=True).indices
    return order[:count].sort().values


def ranks(scores: Tensor) -> Tensor:
    """The place of each score in its row by falling score, ties by index: 0.3 0.9 0.3 have 1 0 2. (…, tokens) int64."""
    return torch.sort(scores, descending=True, stable=True).indices.argsort()


def marked_first(marked: Tensor) -> Tensor:
    """All tokens, first those that are marked, in order, then the others: of 0 1 0 1 they are 1 3 0 2.

    Who knows how many are marked cuts them off, where `nonzero` would let the host wait. (…, tokens) bool -> int64.
    """
    return marked.logical_not().to(torch.uint8).sort(dim=-1, stable=True).indices


def ranks_in_groups(scores: Tensor, groups: Tensor) -> Tensor:
    """The place of each score among those of its group by falling score, ties by index.

    Scores 3 1 2 5 of groups 0 0 1 0 have 1 2 0 0.

    Shapes: (tokens,) of any real dtype and (tokens,) int64 -> (tokens,) int64.
    """
    by_score = scores.sort(descending=True, stable=True).indices
    runs, order = groups[by_score].sort(stable=True)
    order = by_score[order]
    place = torch.arange(len(scores), device=scores.device)
    return torch.zeros_like(order).scatter(0, order, place - torch.searchsorted(runs, runs))


def top_in_groups(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """The `count` highest, but at most ⌈count / groups⌉ of each group: (count,) int64, ascending.

    Fewer where groups are too small. It is what visiting tokens by falling score picks, if a full group is passed over:
    of scores 9 8 7 1 in groups 0 0 0 1, two are 9 and 1.

    Args:
        scores: (tokens,) float.
        groups: (tokens,) int64 on the host, the group of each token, from 0 on.
        count: Of all groups.
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
    """Which `count` of the marked tokens stay, at even steps, or all where there are fewer: (tokens,) bool -> the same.

    Of the four that are marked in 1 0 1 1 1 two are the second and the fourth of them: 0 0 1 0 1.
    """
    ordinal, number = marked.cumsum(dim=0), marked.sum().clamp(min=1)  # 1 is the first that is marked
    return marked & (ordinal * count // number > (ordinal - 1) * count // number)


def into_runs(rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Which row comes to stand where, if each stands in the first free place of its run.

    Args:
        rows: (…, rows) int64, the run of each row.
        places: (…, places) int64, the run of each place, ascending; no run has fewer places than rows.

    Returns:
        (…, rows) int64 twice: rows in the order of their places (those of one run in their own order), and the places.
    """
    runs, order = rows.sort(stable=True)
    # A row's place in its run is its own place less that of its run's first row: runs 0 0 2 give 0 1 0.
    place = torch.arange(rows.shape[-1], device=rows.device)
    ordinal = place - torch.searchsorted(runs, runs)
    return order, torch.searchsorted(places, runs) + ordinal


def by_quota(scores: Tensor, quotas: Tensor, count: int, least: int = 0) -> Tensor:
    """Indices of the lowest scores of each frame, as many as its quota says and `count` in all, ascending.

    Largest remainders: quotas of 2.6, 1.3 and 1.1 for 5 tokens give 3, 1 and 1. A frame with fewer tokens than its
    quota leaves the rest to the others, one for each in turn. Ties go to the lower index.

    Args:
        scores: (frames, tokens of each).
        quotas: (frames,), tokens of each, fractions included.
        count: How many in all.
        least: So many of each frame come first, as far as `count` goes, those of the larger quotas before others.

    Returns:
        (count,) int64, of all frames' tokens one behind the other.
    """
    place = ranks(-scores)
    # What is left of the quota when a token's turn comes: of 2.6 it is 2.6, 1.6 and 0.6, and then below 0.
    left = quotas[:, None] - place
    first = (place < least) * 2.0 * scores.numel()
    return top((left + first).flatten(), count)
