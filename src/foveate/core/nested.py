"""Tensors in a nest of tuples and names, some of which may be missing, changed all alike."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Tensors", "on_tensors"]

Tensors = dict[str, Any]
"""Tensors by name; an entry may itself be tensors by name."""


def on_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same nest with every tensor changed; None stays None.

    Args:
        value: A tensor, None, or a tuple or mapping of such.
        change: Called with every tensor.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(on_tensors(part, change) for part in value)
    return {name: on_tensors(part, change) for name, part in value.items()}
