"""Types of settings, checked by pydantic, and one error for any value that does not fit.

    class Mine(Method):
        layer: Layer = 2
        keep: Share = 0.5

Scalars are strict: a string is not a number, 3.7 is not a layer, and infinity is always refused. Lists become tuples.
"""

from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator

from foveate.core.fields import check as check


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
Layers: TypeAlias = Annotated[tuple[Layer, ...], AfterValidator(_ascending)]
"""Decoder layers, strictly ascending."""
Count: TypeAlias = Annotated[int, Ge(0)]
"""A number of tokens."""
Counts: TypeAlias = tuple[Count, ...]
AtLeastOne: TypeAlias = Annotated[int, Ge(1)]
"""A number of things, 1 or more."""
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
"""A share in [0, 1]."""
Shares: TypeAlias = tuple[Share, ...]
FallingShares: TypeAlias = Annotated[Shares, AfterValidator(_falling)]
"""Shares of the original tokens. They cannot increase from cut to cut."""
Part: TypeAlias = Annotated[float, Gt(0), Le(1)]
"""A share in (0, 1]."""
Tokens: TypeAlias = Annotated[float, Gt(0)]
"""A mean number of tokens, above 0."""
Unit: TypeAlias = Literal["sample", "image", "frame"]
"""Which tokens are ranked together: all vision tokens of a sample, those of each image or video, or of each frame."""
Positions: TypeAlias = Literal["reindex", "keep"]
"""Whether rows are renumbered after a cut ("reindex") or keep their position ids. With M-RoPE they always keep them.

Sliding windows count the same: new numbers, or the columns of the tokens that rows stand for."""
