"""Remembers what was made for a key, so that it is made once."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Memo"]

T = TypeVar("T")
PLAIN = (str, int, tuple, torch.device)


class Memo:
    """Remembers what was made for which key.

    A key is made of tensors and other objects, which are compared as objects, and of names, numbers and devices, which
    are compared by value.

    Args:
        limit: How many are remembered, the latest; None: all.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._made: list[tuple[tuple[Any, ...], Any]] = []
        self._limit = limit

    def once(self, make: Callable[[], T], *key: Any) -> T:
        """What `make` answers, or answered before for the same key."""
        for other, made in self._made:
            # `map` ends with the shorter key, so their lengths are compared first.
            if len(other) == len(key) and all(map(_same, other, key)):
                return made  # type: ignore[no-any-return]
        made = make()
        self._made.append((key, made))
        if self._limit is not None:
            del self._made[: -self._limit]
        return made


def _same(part: Any, other: Any) -> bool:
    """Whether two parts of a key are alike: plain values by value, all others by identity."""
    if isinstance(part, Tensor) or not isinstance(part, PLAIN):
        return part is other
    return type(part) is type(other) and bool(part == other)
