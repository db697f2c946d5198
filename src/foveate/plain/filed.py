"""Records in files: a dataclass as JSON with its format, read back strictly: a key that nothing reads is refused."""

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
    """What a dataclass inherits to go into a file and come back.

    Attributes:
        FORMAT: What its files have as "format".
        KIND: What people call it, "second look".
        SUMMARY: The property that says in a sentence what it is; files have it too, for people.
    """

    FORMAT: ClassVar[str]
    KIND: ClassVar[str]
    SUMMARY: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a file has them."""
        return {"format": self.FORMAT, **_values_of(self), self.SUMMARY: getattr(self, self.SUMMARY)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave.

        Raises:
            InputError: If it is of another format, or a key is missing, of the wrong type, out of its range, or not
                read.
        """
        if values.get("format") != cls.FORMAT:
            raise InputError(f"This is no {cls.KIND}: its format is not {cls.FORMAT!r}.")
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
        """Write it as a JSON file, which goes wherever the name of a method does that it is given for.

        Raises:
            InputError: If the file exists and `force` is off, or it cannot be written.
        """
        path = Path(path)
        if os.path.exists(path) and not force:  # unlike Path.exists, no error where the name is too long
            raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")
        text = json.dumps(encodable(self.to_dict()), indent=2, ensure_ascii=False) + "\n"
        publish(path, lambda part: part.write_text(text, encoding="utf-8"), force=True)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What is in a file.

        Raises:
            InputError: If there is no such file, or it holds none.
        """
        return cls.from_dict(read_json(path))


def _refuse_unread(what: str, written: Any, read: Any) -> None:
    """Refuse a key, however deep, that is not in what was made of the values."""
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
