"""Refuse a value that a field does not have, by the field's own type: one of a `Literal`, or a bool."""

from dataclasses import fields
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from foveate.errors import SettingError

__all__ = ["refuse_other_options"]


def refuse_other_options(values: Any) -> None:
    """Check the fields of a dataclass's instance that have a choice of values.

    Raises:
        SettingError: If a field has another value; the message names the choices.
    """
    kind: Any = type(values)
    for name, options in _choices(kind).items():
        value = getattr(values, name)
        if not any(value is option or (value == option and type(value) is type(option)) for option in options):
            choices = ", ".join(map(repr, options))
            raise SettingError(f"{kind.__name__}: {name} must be one of {choices}; got {value!r}.")


@cache
def _choices(kind: type) -> dict[str, tuple[Any, ...]]:
    """The values that each field of a dataclass may have, where they are few."""
    hints = get_type_hints(kind)
    choices: dict[str, tuple[Any, ...]] = {}
    for field in fields(kind):
        if get_origin(hints[field.name]) is Literal:
            choices[field.name] = get_args(hints[field.name])
        elif hints[field.name] is bool:
            choices[field.name] = (True, False)
    return choices
