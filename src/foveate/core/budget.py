"""How many vision tokens stay: the one place that decides it."""

from collections.abc import Sequence

__all__ = ["keep_count", "mean_tokens", "shared_out"]


def keep_count(tokens: int, ratio: float, minimum: int = 1) -> int:
    """How many of `tokens` stay at keep ratio `ratio`.

    Python's float product, truncated, as V2Drop's released code does it (100 · 0.29 gives 28), and never
    below `minimum` nor above `tokens`.
    """
    return min(tokens, max(minimum, int(tokens * ratio)))


def mean_tokens(per_layer: Sequence[float]) -> float:
    """The budget a schedule spends: vision tokens a layer processes, averaged over all decoder layers."""
    return sum(per_layer) / len(per_layer)


def shared_out(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` shared out in proportion to some sizes, none above its own; what rounding leaves goes to the largest
    remainders, the first of equals: 7 over 4, 4 and 2 are 3, 3 and 1.

    `total` is at most the sum of the sizes.
    """
    whole = max(1, sum(sizes))
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda place: -(total * sizes[place] % whole))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares
