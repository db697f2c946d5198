"""Records in files: a dataclass as JSON with its format, read back strictly: a key that nothing reads is refused."""

import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from foveate.errors import FoveateError, InputError
from foveate.plain.spelling import refuse_keys
from foveate.plain.writing import encodable, publish

T = TypeVar("T")


def values_of(record: Any) -> dict[str, Any]:
    """A dataclass as plain values."""
    kind: Any = type(record)
    values: dict[str, Any] = _adapter(kind).dump_python(record, mode="json")
    return values


def read(kind: type[T], values: Mapping[str, Any], what: str, beside: Iterable[str] = ("format",)) -> T:
    """The dataclass that `values_of` gave.

    Args:
        kind: Its class.
        values: Of a file.
        what: How a sentence on a damaged one begins, "This preset file of foveate tune".
        beside: Keys that are no fields.

    Raises:
        InputError: If a key is missing, of the wrong type, out of its range, or not read.
    """
    refuse_keys(what, values, (*kind.__dataclass_fields__, *beside))  # type: ignore[attr-defined]
    try:
        record: T = _adapter(kind).validate_python(values)  # type: ignore[arg-type]
        _refuse_unread(what, values, {**values, **values_of(record)})
    except ValidationError as error:
        worst = error.errors(include_url=False)[0]
        place, why = ".".join(map(str, worst["loc"])), worst["msg"].removeprefix("Value error, ")
        raise InputError(f"{what} is damaged: {place}: {why}") from error
    except FoveateError as error:
        raise InputError(str(error)) from error
    return record


def save(path: str | Path, values: Mapping[str, Any], *, force: bool = False) -> None:
    """Write plain values as JSON.

    Raises:
        InputError: If the file exists and `force` is off, or it cannot be written.
    """
    path = Path(path)
    if os.path.exists(path) and not force:  # unlike Path.exists, no error where the name is too long
        raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")
    text = json.dumps(encodable(values), indent=2, ensure_ascii=False) + "\n"
    publish(path, lambda part: part.write_text(text, encoding="utf-8"), force=True)


def _refuse_unread(what: str, given: Any, read: Any) -> None:
    """Refuse a key, however deep, that is not in what was made of the values."""
    if isinstance(given, Mapping):
        refuse_keys(what, given, read)
        for key, value in given.items():
            _refuse_unread(what, value, read[key])
    elif isinstance(given, list | tuple):
        for pair in zip(given, read, strict=True):
            _refuse_unread(what, *pair)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
