"""Fields: the one rule by which values given to methods, stages, signals and the like are checked.

Scalars are strict: a string is not a number, 3.7 is not a layer, and infinity is always refused. Lists become tuples.
"""

import dataclasses
import operator
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from foveate.errors import SettingError
from foveate.plain.upstream import brief


def check(values: Any, owner: str = "") -> None:
    """Check the fields of a new instance of a dataclass by their annotations, and convert them.

    Fields that do not take part in comparisons are left out.

    Args:
        values: The instance; it may be frozen.
        owner: What the fields belong to, for the error. By default the name of the class.

    Raises:
        SettingError: If a value is of the wrong type or out of range.
    """
    kind: type = type(values)
    owner = owner or kind.__name__
    for name, adapter in _adapters(kind).items():
        value = getattr(values, name)
        try:
            object.__setattr__(values, name, adapter.validate_python(_plain(value)))
        except ValidationError as error:
            within = error.errors(include_url=False)[0].get("ctx", {}).get("error")
            if isinstance(within, SettingError):  # raised by a method nested in the settings
                raise within from None
            raise SettingError(_sentence(owner, name, value, error)) from None
        except RecursionError:
            raise SettingError(
                f"{owner}: {name} nests too many values inside each other; got {brief(value)}."
            ) from None


@cache
def _adapters(kind: type) -> dict[str, TypeAdapter[Any]]:
    """Return the type adapter of each field, cached per class."""
    hints = get_type_hints(kind, include_extras=True)
    config = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    own = [field.name for field in dataclasses.fields(kind) if field.init and field.compare]
    return {name: TypeAdapter(hints[name], config=config) for name in own}


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


def _sentence(owner: str, name: str, value: Any, error: ValidationError) -> str:
    """Format the error's message: what was wrong with a setting, and its value."""
    worst = error.errors(include_url=False)[0]
    place = name + "".join(f"[{at}]" for at in worst["loc"] if isinstance(at, int))
    said = worst["msg"].removeprefix("Value error, ").removeprefix("Input should ")
    counts = {"missing": "is missing", "too_long": "has too many values", "too_short": "has too few values"}
    if worst["type"] in counts:
        said = f"{place} {counts[worst['type']]}"
    elif not said.startswith("layers"):
        said = f"{place} should be {said.removeprefix('be ')}"
    return f"{owner}: {said}; got {brief(value)}."
