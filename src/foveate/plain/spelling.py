"""Parser for the text of a method, and the errors for unknown names and settings.

Needs no torch, so that a command can refuse a name before slow imports. `foveate.naming` documents the grammar.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError, SettingError, UnknownNameError
from foveate.plain.upstream import brief, trim

CHAIN = "chain"
"""The name of a chain of methods. It does not appear in the list of methods."""
SECOND_LOOK = "foveate second look"
"""Prefix of the "format" of a second look's file, which is not a method."""
FOR_ALL = " For all, run: "
"""Text in an error before the command that lists all names."""
UNTOUCHED = ("full", "none", "off", "no", "original", "baseline", "untouched", "vanilla", "identity", "nothing")
"""Words by which people name the model without a method."""
NEXT = re.compile(r"\+(?!\d)")  # the + between members of a chain, but not the one in 1e+3
PATH = re.compile(r"\s*(\.{0,2}[/\\]|~|[A-Za-z]:[/\\])")  # the beginning of a path, which may contain a +
ENDING = re.compile(r"\.(py|json)\b")
PAIRS = re.compile(r"[;:]|,(?=\s*\w+\s*=)")  # separators of settings, but not the comma in layers=3,17
CODE = re.compile(r"(.+?\.py)\s*(?::(.*))?", re.DOTALL)  # a Python file; its path may contain a colon
FRACTION = re.compile(r"(\d+)/([1-9]\d*)|(\d+\.?\d*) ?%")


@dataclass(frozen=True, slots=True)
class Written:
    """One method of a text, before it is resolved.

    Attributes:
        name: The name of a method, a preset, a preset file or a Python file.
        pairs: The `key=value` texts after the name.
        values: The settings if the text is JSON, else None.
    """

    name: str
    pairs: tuple[str, ...] = ()
    values: Mapping[str, Any] | None = None

    @property
    def is_file(self) -> bool:
        """True if the name is a preset file."""
        return self.values is None and self.name.endswith(".json")

    @property
    def is_code(self) -> bool:
        """True if the name is a Python file."""
        return self.values is None and self.name.endswith(".py")

    @property
    def is_preset(self) -> bool:
        """True if the name is a preset."""
        return self.values is None and not (self.is_file or self.is_code) and "/" in self.name


def parse_text(text: str) -> tuple[Written, ...]:
    """Split a text into its methods; several form a chain.

    Raises:
        SettingError: If it is not a string, starts like JSON but is not valid JSON, or a method has no name.
    """
    if not isinstance(text, str):
        raise SettingError(f'The name of a method must be a text, such as "v2drop"; got {brief(text)}.')
    text = unquote(text.strip())
    if text.startswith("{"):
        return members_in(parse_value(text))
    if Written(text).is_file:  # its name may contain a + or a colon
        return (Written(text),)
    parts: list[str] = []
    for part in NEXT.split(text):
        if parts and PATH.match(parts[-1]) and not ENDING.search(parts[-1]):  # a path goes on to its ending
            parts[-1] += f"+{part}"
        else:
            parts.append(part)
    return tuple(_split(part) for part in parts)


def members_in(values: Any) -> tuple[Written, ...]:
    """Split the values of `Method.to_dict` into their methods.

    Raises:
        SettingError: If they do not name a method.
    """
    name = method_name(values)
    if name != CHAIN:
        settings = {key: value for key, value in values.items() if key != "method"}
        return (Written(name, values=settings),)
    parts = values.get("members")
    if not isinstance(parts, list) or set(values) != {"method", "members"}:
        raise SettingError(
            f"The JSON of a chain must have exactly one more key, members, with a list of methods; got {brief(values)}."
        )
    members: list[Written] = []
    for part in parts:
        members.extend(members_in(part))
    return tuple(members)


def unquote(text: str) -> str:
    """Remove a pair of quotes that a shell or an argument list left around a text."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _split(text: str) -> Written:
    """Split a text into a name and its `key=value` pairs, separated by semicolons, colons or commas."""
    name, _, settings = text.partition(":")
    if code := CODE.fullmatch(text):
        name, settings = code[1], code[2] or ""
    name = name.strip()
    if not name:
        raise SettingError(
            f"A method's name is missing. Write name:key=value;key=value, with + between methods; got {brief(text)}."
        )
    pairs = PAIRS.split(settings)
    return Written(name, tuple(pair for pair in pairs if pair.strip()))


def pair_of(text: str) -> tuple[str, str]:
    """Split a `key=value` text.

    Raises:
        SettingError: If the key or the value is missing.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not (key and equals and value):
        raise SettingError(f"{brief(text)}: write key=value, such as metric=cosine.")
    return key, value


def fractions(text: str) -> str:
    """Replace fractions and percentages in a text by decimals: "1/4,12.5%" becomes "0.25,0.125"."""
    return FRACTION.sub(lambda found: repr(float(found[3]) / 100 if found[3] else int(found[1]) / int(found[2])), text)


# -- JSON and files -------------------------------------------------------------------------------------------


def method_name(values: Any) -> str:
    """Return the method name in a dictionary of settings.

    Raises:
        SettingError: If there is none.
    """
    if isinstance(values, Mapping) and isinstance(name := values.get("method"), str):
        return name
    raise SettingError(f"The settings must name their method, as in {{'method': 'v2drop'}}; got {brief(values)}.")


def settings_in(path: str) -> Mapping[str, Any]:
    """Return the method's settings in a preset file, which `foveate tune` or `Method.to_dict` wrote.

    Raises:
        InputError: If the file cannot be read, or does not name a method.
        SettingError: If it is a second look.
    """
    values = read_json(path)
    if _is_second_look(values):
        raise SettingError(
            f"{path} is a second look, which asks the full model again if an answer is uncertain. It works only with "
            "vlm.ask, vlm.ask_many, foveate generate, batch, eval and demo. Name a method here."
        )
    settings: Any = values
    if not isinstance(values.get("method"), str):
        settings = values.get("method")  # a file of `foveate tune` has the method's settings under this key
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} names no method. Give a file of foveate tune, or the JSON of Method.to_dict.")
    return settings


def is_second_look(text: str) -> bool:
    """True if a text names the file of a second look, which asks the full model again if an answer is uncertain.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If it is not a string.
    """
    parts = parse_text(text)
    return len(parts) == 1 and parts[0].is_file and _is_second_look(read_json(parts[0].name))


def _is_second_look(values: Mapping[str, Any]) -> bool:
    return str(values.get("format")).startswith(SECOND_LOOK)


def read_json(path: str | Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        InputError: If there is no such file, or it does not hold a JSON object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a JSON object; got {trim(json.dumps(values), 80)}.")
    return values


def parse_value(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        SettingError: If it is not valid JSON.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"Not valid JSON: {error}; got {brief(text)}.") from error


# -- unknown names --------------------------------------------------------------------------------------------


def nearest(name: str, names: Iterable[str], most: int = 1) -> str:
    """Return " Did you mean …?" with the most similar names, to append to an error; empty if none is similar."""
    near = difflib.get_close_matches(name, sorted(names), n=most)
    if not near:
        return ""
    return f" Did you mean {' or '.join(near)}?"


def in_words(texts: Iterable[str], last: str) -> str:
    """Join texts with commas, and the last one with a word: `192, 128 and 64`."""
    *others, text = texts
    return f"{', '.join(others)} {last} {text}" if others else text


def unknown(what: str, name: str, names: Iterable[str], command: str) -> UnknownNameError:
    """Return the error for an unknown name, with similar names and the command that lists all."""
    hint = nearest(name, names, 3)
    if what == "method" and name.lower() in UNTOUCHED:
        hint = " The full model needs none: leave the method out, and drop with it."
    return UnknownNameError(f"No {what} {brief(name)}.{hint}{FOR_ALL}{command}.")


def refuse_keys(what: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse unknown keys of a dictionary.

    Raises:
        InputError: If there is one. The message contains the most similar known key, or all of them.
    """
    names = sorted(known)
    for key in given:
        if key not in names:
            hint = nearest(str(key), names) or f" Leave it out; known keys: {', '.join(names)}."
            raise InputError(f"{what} has the key {trim(str(key), 80)}, which is not read.{hint}")


def no_setting(method: str, name: str, settings: Iterable[str]) -> SettingError:
    """Return the error for a setting that a method does not have."""
    return SettingError(f"{method} has no setting {trim(name, 80)}. It has: {', '.join(sorted(settings))}.")
