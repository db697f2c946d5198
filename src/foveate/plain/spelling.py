"""How methods are written: a text in its parts, and the errors for names and settings that there are not.

Needs no torch, so that a command can refuse a name before anything slow is imported. The grammar is shown in
`foveate.naming`.
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
"""The name of a chain of methods. It is in no list of methods."""
SECOND_LOOK = "foveate second look"
"""How the format of a file begins that asks the full model again; it is none of a method."""
FOR_ALL = " For all, run: "
"""What stands before the command that lists all names, in an error."""
NEXT = re.compile(r"\+(?!\d)")  # between members of a chain, but not the sign in 1e+3
PAIRS = re.compile(r"[;:]|,(?=\s*\w+\s*=)")  # between settings, but not the commas of layers=3,17
CODE = re.compile(r"(.+?\.py)\s*(?::(.*))?", re.DOTALL)  # a Python file, whose path may have a colon
FRACTION = re.compile(r"(\d+)/([1-9]\d*)|(\d+\.?\d*) ?%")


@dataclass(frozen=True, slots=True)
class Written:
    """One method of a text, as it is written there.

    Attributes:
        name: Of a method, a preset, a preset file or a Python file.
        pairs: The `key=value` texts behind the name.
        values: The settings, where the text is JSON; else None.
    """

    name: str
    pairs: tuple[str, ...] = ()
    values: Mapping[str, Any] | None = None

    @property
    def is_file(self) -> bool:
        """Whether the name is that of a preset file."""
        return self.values is None and self.name.endswith(".json")

    @property
    def is_code(self) -> bool:
        """Whether the name is that of a Python file."""
        return self.values is None and self.name.endswith(".py")

    @property
    def is_preset(self) -> bool:
        """Whether the name is that of a preset."""
        return self.values is None and not (self.is_file or self.is_code) and "/" in self.name


def written(text: str) -> tuple[Written, ...]:
    """The methods of a text; several are a chain.

    Raises:
        SettingError: If it is no text, no JSON where it begins like JSON, or a method in it has no name.
    """
    if not isinstance(text, str):
        raise SettingError(f'The name of a method must be a text, such as "v2drop"; got {brief(text)}.')
    text = unquote(text.strip())
    if text.startswith("{"):
        return members_in(parse_value(text))
    if Written(text).is_file:  # its name may have a + or a colon
        return (Written(text),)
    return tuple(_split(part) for part in NEXT.split(text))


def members_in(values: Any) -> tuple[Written, ...]:
    """The methods of what `Method.to_dict` gave.

    Raises:
        SettingError: If it names no method.
    """
    name = method_name(values)
    if name != CHAIN:
        settings = {key: value for key, value in values.items() if key != "method"}
        return (Written(name, values=settings),)
    parts = values.get("members")
    if not isinstance(parts, list) or set(values) != {"method", "members"}:
        raise SettingError(
            f"The JSON of a chain has one more key, members, with a list of methods; got {brief(values)}."
        )
    members: list[Written] = []
    for part in parts:
        members.extend(members_in(part))
    return tuple(members)


def unquote(text: str) -> str:
    """A text without the quotes that a shell or a list of arguments has left around it."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _split(text: str) -> Written:
    """A name, and its `key=value` pairs; these may also stand behind colons, and behind commas."""
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
    """A `key=value` text in its two parts.

    Raises:
        SettingError: If one of them is missing.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not (key and equals and value):
        raise SettingError(f"{brief(text)}: write key=value, such as metric=cosine.")
    return key, value


def fractions(text: str) -> str:
    """A text with decimals in the place of fractions and percentages: 1/4,12.5% is 0.25,0.125."""
    return FRACTION.sub(lambda found: repr(float(found[3]) / 100 if found[3] else int(found[1]) / int(found[2])), text)


# -- JSON and files -------------------------------------------------------------------------------------------


def method_name(values: Any) -> str:
    """The method that a dictionary of settings names.

    Raises:
        SettingError: If it names none.
    """
    if isinstance(values, Mapping) and isinstance(name := values.get("method"), str):
        return name
    raise SettingError(f"The settings must name their method, as in {{'method': 'v2drop'}}; got {brief(values)}.")


def settings_in(path: str) -> Mapping[str, Any]:
    """What a preset file, of `foveate tune` or of `Method.to_dict`, says of its method.

    Raises:
        InputError: If the file cannot be read, or names no method.
        SettingError: If it is a second look.
    """
    values = read_json(path)
    if _is_second_look(values):
        raise SettingError(
            f"{path} is a second look, which asks the full model again where an answer is unsure. It is for vlm.ask, "
            "vlm.ask_many, foveate generate, batch, eval and demo. Here nothing is asked again: name a method."
        )
    settings: Any = values
    if not isinstance(values.get("method"), str):
        settings = values.get("method")  # a record has the method's settings under this name
    if not isinstance(settings, Mapping):
        raise InputError(f"{path} names no method. Give one of foveate tune, or the JSON of Method.to_dict.")
    return settings


def is_second_look(text: str) -> bool:
    """Whether a text names a file that asks the full model again where an answer is unsure.

    Raises:
        InputError: If it names a file that cannot be read.
        SettingError: If it is no text.
    """
    parts = written(text)
    return len(parts) == 1 and parts[0].is_file and _is_second_look(read_json(parts[0].name))


def _is_second_look(values: Mapping[str, Any]) -> bool:
    return str(values.get("format")).startswith(SECOND_LOOK)


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
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return values


def parse_value(text: str) -> Any:
    """What a JSON text says.

    Raises:
        SettingError: If it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingError(f"Not valid JSON: {error}; got {brief(text)}.") from error


# -- names that there are not ---------------------------------------------------------------------------------


def nearest(name: str, names: Iterable[str], most: int = 1) -> str:
    """A question behind the sentence on a name that there is not, " Did you mean this?"; empty where none is near."""
    near = difflib.get_close_matches(name, sorted(names), n=most)
    if not near:
        return ""
    return f" Did you mean {' or '.join(near)}?"


def unknown(what: str, name: str, names: Iterable[str], command: str) -> UnknownNameError:
    """The error for a name that is not among these: the nearest of them, and the command that lists all."""
    return UnknownNameError(f"No {what} {brief(name)}.{nearest(name, names, 3)}{FOR_ALL}{command}.")


def refuse_keys(what: str, given: Iterable[Any], known: Iterable[str]) -> None:
    """Refuse a key of somebody's dictionary that nothing reads.

    Raises:
        InputError: With the nearest that is read, or all of them.
    """
    names = sorted(known)
    for key in given:
        if key not in names:
            hint = nearest(str(key), names) or f" Leave it out; read are {', '.join(names)}."
            raise InputError(f"{what} has the key {trim(str(key), 80)}, which is not read.{hint}")


def check_keywords(what: str, given: Iterable[str], known: type) -> None:
    """Refuse a keyword that is not among a TypedDict's.

    Raises:
        SettingError: That lists those there are.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            raise no_setting(what, name, names)


def no_setting(method: str, name: str, settings: Iterable[str]) -> SettingError:
    """The error for a setting that a method has not."""
    return SettingError(f"{method} has no setting {trim(name, 80)}. It has: {', '.join(sorted(settings))}.")
