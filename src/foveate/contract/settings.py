"""Types of settings, checked by pydantic, and one error for any value that does not fit.

    class Mine(Method):
        layer: Layer = 2
        keep: Share = 0.5

Scalars are strict: a string is not a number, 3.7 is not a layer, and infinity is always refused. Lists become tuples.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from annotated_types import Ge, Gt, Le

from foveate.errors import SettingError
from foveate.plain.upstream import brief

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError


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


def check(owner: str, kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Check and convert the settings of a dataclass by its annotations.

    Args:
        owner: Name of the method, for the error.
        kind: The dataclass.
        values: The given values, by name.

    Raises:
        SettingError: If a value is of the wrong type or out of range.
    """
    from pydantic import ValidationError

    checked = {}
    for name, adapter in _adapters(kind).items():
        value = values[name]
        try:
            checked[name] = adapter.validate_python(_plain(value))
        except ValidationError as error:
            within = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(within, SettingError):  # raised by a method nested in the settings
                raise within from None
            raise SettingError(_sentence(owner, name, value, error)) from None
        except RecursionError:
            raise SettingError(
                f"{owner}: {name} nests too many values inside each other; got {brief(value)}."
            ) from None
    return checked


@cache
def _adapters(kind: type) -> "dict[str, TypeAdapter[Any]]":
    """Return the type adapter of each setting, cached per class."""
    from pydantic import ConfigDict, TypeAdapter

    hints = get_type_hints(kind, include_extras=True)
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    return {
        field.name: TypeAdapter(hints[field.name], config=config) for field in dataclasses.fields(kind) if field.init
    }


def _plain(value: Any) -> Any:
    """Convert lists to tuples, and numpy or torch numbers to Python's: `np.int64(3)` gives 3."""
    if isinstance(value, list | tuple | range):
        return tuple(_plain(part) for part in value)
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a numpy or torch scalar
        return value.item()
    if hasattr(value, "__index__") and not hasattr(value, "ndim"):
        return operator.index(value)
    return value


def _sentence(owner: str, name: str, value: Any, error: "ValidationError") -> str:
    """Format the error's message: what was wrong with a setting, and its value."""
    worst = error.errors(include_url=False)[0]
    place = name + "".join(f"[{at}]" for at in worst["loc"] if isinstance(at, int))
    said = worst["msg"].removeprefix("Value error, ").removeprefix("Input should ")
    if worst["type"] == "missing":
        said = f"{place} is missing"
    elif worst["type"] == "too_long":
        said = f"{place} has too many values"
    elif not said.startswith("layers"):
        said = f"{place} should be {said.removeprefix('be ')}"
    return f"{owner}: {said}; got {brief(value)}."
