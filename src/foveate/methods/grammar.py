"""The grammar of `foveate.methods.names`: from a text, a JSON object or a file to the methods that it names."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.errors import InputError, SettingError
from foveate.methods import catalogue
from foveate.methods.base import Method
from foveate.methods.named import Member, Named
from foveate.methods.values import listed, refuse_unknown, values_of

__all__ = ["parsed", "read", "read_json", "unquoted"]

NEXT = re.compile(r"\+(?!\d)")  # between members of a chain, but not the sign in 1e+3


def read(text: str) -> Named:
    """What a text says; the grammar is that of `foveate.methods.names`.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If a setting is unknown or given twice.
        UnknownNameError: If there is no method or preset of a name.
    """
    if not isinstance(text, str):
        raise SettingError(f"A method is named by a text, such as v2drop; got {text!r}.")
    text = unquoted(text.strip())
    if text.startswith("{"):
        return Named(text, _members_of(parsed(text)))
    if _is_file(text):  # its name may have a + or a colon
        return Named(text, (_member(text, []),))
    parts = NEXT.split(text)
    return Named(text, tuple(_member(*_split(part)) for part in parts))


def unquoted(text: str) -> str:
    """A text without the quotes that a shell or a list of arguments has left around it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _split(text: str) -> tuple[str, list[str]]:
    """A name, and its `key=value` pairs; these may also stand behind colons."""
    name, _, settings = text.partition(":")
    name = name.strip()
    if not name:
        raise SettingError(f"A method has a name: name:key=value;key=value+other; got {text!r}.")
    pairs = settings.replace(":", ";").split(";")
    return name, [pair for pair in pairs if pair.strip()]


def _member(name: str, pairs: Sequence[str]) -> Member:
    if _is_file(name):
        return _changed(_from_file(name), pairs)
    if "/" in name:
        return _changed(catalogue.preset(name), pairs)
    kind = catalogue.method(name)
    return Member(kind, values_of(kind, pairs))


def _changed(ready: Method, pairs: Sequence[str]) -> Member:
    """A method with these settings changed."""
    return Member(type(ready), values_of(type(ready), pairs), ready)


# -- JSON and files -------------------------------------------------------------------------------------------


def _members_of(values: Any) -> tuple[Member, ...]:
    """The members of what `Method.to_dict` gave."""
    name = catalogue.method_name(values)
    if name == catalogue.CHAIN:
        return _members_of_chain(values)
    kind = catalogue.method(name)
    settings = {key: value for key, value in values.items() if key != "method"}
    for key in sorted(settings):
        refuse_unknown(kind, key)
    return (Member(kind, listed(kind, settings)),)


def _members_of_chain(values: Mapping[str, Any]) -> tuple[Member, ...]:
    parts = values.get("members")
    if not isinstance(parts, list) or set(values) != {"method", "members"}:
        raise SettingError(f"A chain has members, a list of methods, and nothing else; got {values!r}.")
    members: list[Member] = []
    for part in parts:
        members.extend(_members_of(part))
    return tuple(members)


def _is_file(name: str) -> bool:
    return name.endswith(".json")


def _from_file(path: str) -> Method:
    """The method of a tuning's record, or of what `Method.to_json` wrote."""
    values = read_json(path)
    settings: Any = values
    if not isinstance(values.get("method"), str):
        settings = values.get("method")  # a record has the method's settings under this name
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} is no record of a tuning, nor a method's own JSON: it names no method.")
    return catalogue.from_dict(settings)


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: If there is no such file, or it holds none.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no JSON object.")
    return values


def parsed(text: str) -> Any:
    """What a JSON text says.

    Raises:
        SettingError: If it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"This is no JSON: {error}; got {text[:80]!r}.") from error
