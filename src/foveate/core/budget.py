"""How many vision tokens stay: the one place that decides it."""

from collections.abc import Sequence

__all__ = ["keep_count", "mean_tokens"]


def keep_count(tokens: int, ratio: float, minimum: int = 1) -> int:
    """How many of `tokens` stay at keep ratio `ratio`.

    Python's float product, truncated, as V2Drop's released code does it (100 · 0.29 gives 28), and never
    below `minimum` nor above `tokens`.
    """
    return min(tokens, max(minimum, int(tokens * ratio)))


def mean_tokens(per_layer: Sequence[float]) -> float:
    """The budget a schedule spends: vision tokens a layer processes, averaged over all decoder layers."""
    return sum(per_layer) / len(per_layer)
