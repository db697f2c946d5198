"""`--model_args` of lmms-eval's command line: from a text to values, each of its kind.

method=v2drop:layers=3,17,22;keep=0.5,0.3,0,budget=192     a comma separates where NAME= follows
{"method": "v2drop:metric=cosine", "budget": 192}          JSON; a mapping from lmms-eval's YAML says the same
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from foveate._spelling import parsed, unquoted
from foveate.errors import SettingError

__all__ = ["NAMES", "values_of"]

NAMES = (
    "pretrained",
    "method",
    "budget",
    "retention",
    "seed",
    "settings",
    "protocol",
    "max_frames",
    "log",
    "device",
    "dtype",
    "attention",
)
"""The arguments, as `Foveate` takes them."""
NUMBERS = ("budget", "retention")
WHOLE = ("seed", "max_frames")
STRUCTURED = ("method", "settings")
"""What JSON may give as an object."""
FLAGS = ("batch_size", "max_batch_size")

# A span in quotes, or a comma that separates. An apostrophe inside a word opens no span.
_PARTS = re.compile(r"""(?<=[=:,\[{\s])'[^']*'|(?<=[=:,\[{\s])"[^"]*"|(?P<comma>,)(?=\s*[A-Za-z_][\w-]*\s*=)""")


def values_of(arguments: str | Mapping[str, Any]) -> dict[str, Any]:
    """The arguments by name; those that are null in JSON are left out.

    Raises:
        SettingError: If one is unknown, given twice, empty or of the wrong kind.
    """
    if isinstance(arguments, str):
        arguments = _read(arguments.strip())
    for name in arguments:
        if name not in NAMES:
            raise SettingError(_unknown(str(name)))
    return {name: _value(name, value) for name, value in arguments.items() if value is not None}


def _read(text: str) -> dict[str, Any]:
    if text.startswith("{"):
        values: dict[str, Any] = parsed(text)
        return values
    pairs: dict[str, Any] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"model_args are written NAME=VALUE,NAME=VALUE, or as JSON; got {part!r}.")
        if name.strip() in pairs:
            raise SettingError(f"{name.strip()} is given twice in model_args.")
        pairs[name.strip()] = value.strip()
    return pairs


def _split(text: str) -> list[str]:
    """The `NAME=VALUE` parts: `a=1,2,b=3` are `a=1,2` and `b=3`."""
    commas = [match.start() for match in _PARTS.finditer(text) if match["comma"]]
    starts = [0, *(comma + 1 for comma in commas)]
    ends = [*commas, len(text)]
    parts = [text[start:end].strip(", ") for start, end in zip(starts, ends, strict=True)]
    return [part for part in parts if part]


def _value(name: str, value: Any) -> Any:
    """A value of its argument's kind; ranges are left to those who use it."""
    if isinstance(value, str):
        value = unquoted(value.strip())
        if not value:
            raise SettingError(f"{name}= has no value. Leave {name} out, or give it one.")
    if name in NUMBERS:
        return _number(name, value)
    if name in WHOLE:
        number = _number(name, value)
        if not isinstance(number, int):
            raise SettingError(f"{name} is a whole number; got {value!r}.")
        return number
    if not isinstance(value, str) and not (name in STRUCTURED and isinstance(value, Mapping)):
        raise SettingError(f"{name} is a text; got {value!r}.")
    return value


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    raise SettingError(f"{name} is a number; got {value!r}.")


def _unknown(name: str) -> str:
    """A sentence on a name that is no argument's."""
    if name in FLAGS:
        return f"{name} is a flag of lmms-eval: write --{name} beside --model_args."
    there = f"There are: {', '.join(NAMES)}."
    near = difflib.get_close_matches(name.lower().replace("-", "_"), NAMES, n=1)
    if near:
        return f"No model argument {name!r}. Did you mean {near[0]}? {there}"
    return f"No model argument {name!r}. {there} A method's settings go behind its name: method=v2drop:metric=cosine."
