"""Types of settings, checked by pydantic, and one error for any value that does not fit.

    class Mine(Method):
        layer: Layer = 2
        keep: Share = 0.5

Scalars are strict: a string is not a number, 3.7 is not a layer, and infinity is always refused. Lists become tuples.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le

from foveate.core.fields import check as check


class Checks:
    """A check of a tuple that runs after pydantic's own."""

    def __init__(self, check: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in pairwise(values)):
        raise ValueError("layers must ascend strictly")
    return values


def _falling(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(after > before for before, after in pairwise(values)):
        raise ValueError("shares of the original tokens that never increase")
    return values


Layer: TypeAlias = Annotated[int, Ge(0)]
"""A decoder layer, 0-based."""
Layers: TypeAlias = Annotated[tuple[Layer, ...], Checks(_ascending)]
"""Decoder layers, strictly ascending."""
Count: TypeAlias = Annotated[int, Ge(0)]
"""A number of tokens."""
Counts: TypeAlias = tuple[Count, ...]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
"""A share in [0, 1]."""
Shares: TypeAlias = tuple[Share, ...]
FallingShares: TypeAlias = Annotated[Shares, Checks(_falling)]
"""Shares of the original tokens. They cannot increase from cut to cut."""
Part: TypeAlias = Annotated[float, Gt(0), Le(1)]
"""A share in (0, 1]."""
Tokens: TypeAlias = Annotated[float, Gt(0)]
"""A mean number of tokens, above 0."""
Unit: TypeAlias = Literal["sample", "image", "frame"]
"""Which tokens are ranked together: all vision tokens of a sample, those of each image or video, or of each frame."""
Positions: TypeAlias = Literal["reindex", "keep"]
"""Whether rows are renumbered after a cut ("reindex") or keep their position ids. With M-RoPE they always keep them."""
