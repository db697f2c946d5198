"""Dataclasses saved as JSON files. Reading is strict: unknown keys are refused."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from foveate.errors import FoveateError, InputError
from foveate.plain.spelling import read_json, refuse_keys
from foveate.plain.writing import encodable, publish


class Record:
    """Base of a dataclass that is saved to a JSON file and loaded from it.

    Attributes:
        FORMAT: Value of the key "format" in the file.
        KIND: Name of the record in messages, such as "second look".
        SUMMARY: Name of the property that describes the record in a sentence. Files contain it for human readers.
    """

    FORMAT: ClassVar[str]
    KIND: ClassVar[str]
    SUMMARY: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the file as plain values."""
        return {"format": self.FORMAT, **_values_of(self), self.SUMMARY: getattr(self, self.SUMMARY)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the record from the values of `to_dict`.

        Raises:
            InputError: If the format is another one, or a key is missing, unknown, of the wrong type or out of range.
        """
        if values.get("format") != cls.FORMAT:
            raise InputError(f"This is not a {cls.KIND}: its format is not {cls.FORMAT!r}.")
        what = f"This {cls.KIND}"
        refuse_keys(what, values, (*cls.__dataclass_fields__, "format", cls.SUMMARY))  # type: ignore[attr-defined]
        try:
            record = TypeAdapter(cls).validate_python(values)
            _refuse_unread(what, values, {**values, **_values_of(record)})
        except ValidationError as error:
            worst = error.errors(include_url=False)[0]
            place, why = ".".join(map(str, worst["loc"])), worst["msg"].removeprefix("Value error, ")
            raise InputError(f"{what} is damaged: {place}: {why}") from error
        except FoveateError as error:
            raise InputError(str(error)) from error
        return record

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write a JSON file. Its path can be given wherever the name of a method can.

        Raises:
            InputError: If the file exists and `force` is False, or it cannot be written.
        """
        path = Path(path)
        if os.path.exists(path) and not force:  # unlike Path.exists, raises no error if the name is too long
            raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")
        text = json.dumps(encodable(self.to_dict()), indent=2, ensure_ascii=False) + "\n"
        publish(path, lambda part: part.write_text(text, encoding="utf-8"), force=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load the record from a file.

        Raises:
            InputError: If there is no such file, or it does not hold such a record.
        """
        return cls.from_dict(read_json(path))


def _refuse_unread(what: str, written: Any, read: Any) -> None:
    """Refuse keys in `written`, at any depth, that are missing in `read`."""
    if isinstance(written, Mapping):
        refuse_keys(what, written, read)
        for key, value in written.items():
            _refuse_unread(what, value, read[key])
    elif isinstance(written, list | tuple):
        for pair in zip(written, read, strict=True):
            _refuse_unread(what, *pair)


def _values_of(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = TypeAdapter(type(record)).dump_python(record, mode="json")
    return values
