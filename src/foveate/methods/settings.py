"""What settings may be: named types that pydantic checks, and one error for whatever does not fit.

    class Mine(Method):
        layer: Layer = 2
        keep: Share = 0.5

Scalars are strict: a word is no number, 3.7 no layer, and infinity nothing at all. Lists become tuples.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from annotated_types import Ge, Gt, Le

from foveate.methods import catalogue
from foveate.methods.base import Method
from foveate.methods.checking import check

__all__ = [
    "Count",
    "Counts",
    "Layer",
    "Layers",
    "MethodSetting",
    "Positions",
    "Share",
    "Shares",
    "Tokens",
    "Unit",
    "check",
    "numbering",
]


class Ascending:
    """A tuple's values ascend strictly."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(_ascending, handler(source))


class _Method:
    """A method, or the dictionary of one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(_method)


def _method(value: Any) -> Any:
    if isinstance(value, Mapping) and "method" in value:
        return catalogue.from_dict(value)
    if not isinstance(value, Method):
        raise ValueError("a method that drops")
    return value


def _ascending(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in pairwise(values)):
        raise ValueError("layers must ascend strictly")
    return values


Layer: TypeAlias = Annotated[int, Ge(0)]
"""A decoder layer, 0-based."""
Layers: TypeAlias = Annotated[tuple[Layer, ...], Ascending()]
"""Decoder layers, strictly ascending."""
Count: TypeAlias = Annotated[int, Ge(0)]
"""A number of tokens."""
Counts: TypeAlias = tuple[Count, ...]
Share: TypeAlias = Annotated[float, Ge(0), Le(1)]
"""A share in [0, 1]."""
Shares: TypeAlias = tuple[Share, ...]
Tokens: TypeAlias = Annotated[float, Gt(0)]
"""A mean number of tokens, above 0."""
Unit: TypeAlias = Literal["sample", "image", "frame"]
"""What is ranked together: all vision tokens of a sample, those of each image or video, or of each frame."""
Positions: TypeAlias = Literal["reindex", "keep"]
"""Whether rows are numbered anew after a cut, or keep their position ids."""


def numbering(positions: Positions) -> Literal["renumber", "keep"]:
    """What a stage calls a method's `positions`: "reindex", the name in the released codes, is "renumber" there."""
    if positions == "reindex":
        return "renumber"
    return "keep"


if TYPE_CHECKING:
    MethodSetting: TypeAlias = Method
else:
    MethodSetting = Annotated[Any, _Method()]
    """Another method, or its dictionary."""
