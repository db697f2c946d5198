"""Values of a method's settings, as texts, command lines and JSON give them."""

import types
import warnings
from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from foveate._spelling import no_setting, pair_of
from foveate.errors import SettingError
from foveate.methods.base import Method

__all__ = ["listed", "refuse_unknown", "settings_of", "value_of", "values_of"]

SWITCHES = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def settings_of(kind: type[Method]) -> tuple[str, ...]:
    """The settings that a method has."""
    return tuple(field.name for field in fields(kind))  # type: ignore[arg-type]


def refuse_unknown(kind: type[Method], name: str) -> None:
    """Refuse what is no setting of a method.

    Raises:
        SettingError: If the method has no such setting.
    """
    settings = settings_of(kind)
    if name not in settings:
        raise no_setting(kind.name, name, settings)


def values_of(kind: type[Method], pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as settings of a method: `layers=3,17,22` a tuple, `reverse=true` a switch, `metric=l1` a word.

    Raises:
        SettingError: If a pair has no `=`, a key comes twice, or the method has no such setting.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, text = pair_of(pair)
        refuse_unknown(kind, name)
        if name in values:
            raise SettingError(f"{name} is given twice.")
        values[name] = value_of(kind, name, text)
    return values


def value_of(kind: type[Method], name: str, text: str) -> Any:
    """A text as its setting wants it; what does not fit is left to the setting's own check."""
    if bool in _types(kind).get(name, ()):
        return SWITCHES.get(text.lower(), text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python on texts such as 0or1
            value = literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return listed(kind, {name: value})[name]


def listed(kind: type[Method], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings, a lone number where a list is wanted as a list of one."""
    settings = dict(values)
    for name, value in values.items():
        lone = isinstance(value, int | float) and not isinstance(value, bool)
        if lone and tuple in _types(kind).get(name, ()):
            settings[name] = (value,)
    return settings


@cache
def _types(kind: type[Method]) -> dict[str, frozenset[type]]:
    """What kinds of values each setting takes: of `tuple[int, ...] | None` a tuple and None."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: frozenset(_plain_types(hint)) for name, hint in hints.items()}


def _plain_types(hint: Any) -> list[Any]:
    origin = get_origin(hint)
    if origin is Annotated:
        return _plain_types(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return [plain for part in get_args(hint) for plain in _plain_types(part)]
    return [origin or hint]
