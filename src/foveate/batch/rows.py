"""From what an input holds to rows: an id, pictures or films, a question; or why there is none."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foveate._upstream import brief, printable

__all__ = ["ID", "Answered", "Bad", "Columns", "Result", "Row", "Unreadable", "row_of"]

MEDIA = ("media", "image", "images", "picture", "video")
QUESTION = ("question", "prompt")
ID = "id"
"""What columns are called where nothing is said; the first that is there counts."""


class Unreadable(ValueError):
    """A record of an input that cannot be read. The message says why."""


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of an input are called.

    Attributes:
        media: The one with the path of a picture or film, or a list of paths; None takes the first of `MEDIA`.
        question: The one with the question; None takes the first of `QUESTION`.
        id: The one with the id; None takes `ID`, and numbers the rows where there is none.
        numbered: Whether rows are called by their number in any case.
    """

    media: str | None = None
    question: str | None = None
    id: str | None = None
    numbered: bool = False

    @property
    def media_names(self) -> tuple[str, ...]:
        """Names that the column of pictures may have."""
        return MEDIA if self.media is None else (self.media,)

    @property
    def question_names(self) -> tuple[str, ...]:
        """Names that the column of questions may have."""
        return QUESTION if self.question is None else (self.question,)


@dataclass(frozen=True, slots=True)
class Row:
    """One question.

    Attributes:
        number: Its place in the input, from 0.
        id: What it is called in the output.
        media: Paths of its pictures and films.
        question: The text.
    """

    number: int
    id: str
    media: tuple[str, ...]
    question: str


@dataclass(frozen=True, slots=True)
class Bad:
    """A row without an answer.

    Attributes:
        number: Its place in the input, from 0.
        id: As far as it is known.
        media: As far as they are known.
        question: As far as it is known.
        reason: Why there is no answer, and what to do.
    """

    number: int
    reason: str
    id: str | None = None
    media: tuple[str, ...] | None = None
    question: str | None = None

    @classmethod
    def of(cls, row: Row, reason: str) -> "Bad":
        """A row that was read, and could not be answered."""
        return cls(row.number, reason, row.id, row.media, row.question)

    def to_dict(self) -> dict[str, Any]:
        """Plain values. They can be an input again: the names are those that columns have by default."""
        media = None if self.media is None else list(self.media)
        return {
            "row": self.number,
            "id": self.id,
            "media": media,
            "question": self.question,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Answered:
    """A row with its answer.

    Attributes:
        number: Its place in the input, from 0.
        id: As in the input.
        answer: The text.
        retention: Share of the vision tokens that a decoder layer processed, on average.
        vision_tokens: Vision tokens in the prompt.
        tokens: How many of them a decoder layer processed, on average.
        new_tokens: Tokens of the answer, the end of sequence included.
        prepare_seconds: Reading its files, and what the processor does.
        answer_seconds: Its share of the time that its batch took.
        notes: What the user should know, such as that a picture is cropped.
    """

    number: int
    id: str
    answer: str
    retention: float
    vision_tokens: int
    tokens: float
    new_tokens: int
    prepare_seconds: float
    answer_seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, in the order of the output's columns."""
        return {
            "row": self.number,
            "id": self.id,
            "answer": self.answer,
            "retention": self.retention,
            "vision_tokens": self.vision_tokens,
            "tokens": self.tokens,
            "new_tokens": self.new_tokens,
            "prepare_seconds": round(self.prepare_seconds, 6),
            "answer_seconds": round(self.answer_seconds, 6),
            "notes": list(self.notes),
        }


Result = Answered | Bad


def row_of(number: int, record: Mapping[str, Any], columns: Columns, question: str | None, root: str) -> Row | Bad:
    """The row that a record holds.

    Args:
        number: Its place in the input.
        record: Values by column.
        columns: What the columns are called.
        question: Asked in the place of every row's own; None reads the column.
        root: The folder that relative paths start from.
    """
    name = media = asked = None
    try:
        name = _id(number, record, columns)
        media = _media(_first(record, columns.media_names), root)
        asked = _question(_first(record, columns.question_names) if question is None else question)
    except Unreadable as error:
        return Bad(number, str(error), name, media, asked)
    return Row(number, name, media, asked)


def _first(record: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The value under the first of these names that is there.

    Raises:
        Unreadable: If none is.
    """
    for name in names:
        value = record.get(name)
        if value is not None:
            return value
    has = ", ".join(printable(str(key)) for key in record) or "no column"
    raise Unreadable(f"The row has nothing under {' or '.join(names)}; it has {has:.200}.")


def _id(number: int, record: Mapping[str, Any], columns: Columns) -> str:
    if columns.numbered:
        return str(number)
    value = _first(record, (columns.id or ID,))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and value:
        return _text(value, "id")
    raise Unreadable(f"An id is a text or a whole number; got {brief(value)}.")


def _media(value: Any, root: str) -> tuple[str, ...]:
    """Absolute paths; an empty list asks without a picture."""
    paths = list(value) if isinstance(value, list | tuple) else [value]
    for path in paths:
        if not isinstance(path, str) or not path:
            raise Unreadable(f"A picture or film is the path of a file, or a list of them; got {brief(path)}.")
        if path.startswith(("http://", "https://")):
            raise Unreadable(f"{brief(path)} is an address: nothing is downloaded. Fetch it first, and name the file.")
    return tuple(os.path.join(root, path) for path in paths)


def _question(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Unreadable(f"A question is a text; got {brief(value)}.")
    return _text(value, "question")


def _text(value: str, what: str) -> str:
    """A text that can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unreadable(f"The {what} is no text of Unicode: {brief(value)}.") from None
    return value
