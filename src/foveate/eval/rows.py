"""A line of the store: a record as JSON with a checksum, and what a line must say to be believed."""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, model_validator

__all__ = ["CHECKSUM", "FULL", "Damaged", "line_of", "row_of"]

FULL = "full"
"""The name under which the full model's answers are kept."""
CHECKSUM = "sha256"
DIGITS = 16  # 64 bits: one damaged line in 10^19 passes
MOST_ID = 2**31  # no vocabulary comes near it

Amount = Annotated[FiniteFloat, Field(ge=0)]
TokenId = Annotated[int, Field(ge=0, lt=MOST_ID)]


class Damaged(ValueError):
    """A line that is no record, or not the one that was written."""


class _Exact(BaseModel):
    """Values of these names and types, and no others: a name that was damaged is no name."""

    model_config = ConfigDict(strict=True, extra="forbid")


class _First(_Exact):
    ids: list[TokenId] = Field(min_length=1)
    logs: list[FiniteFloat]

    @model_validator(mode="after")
    def _check_lengths(self) -> "_First":
        if len(self.ids) != len(self.logs):
            raise ValueError("each id has one log-probability")
        return self


class _Row(_Exact):
    """What is kept of an answer to an embedded question."""

    method: str
    question: str
    answer: str
    spent: Amount
    vision_tokens: Amount
    flops: Amount | None
    first: _First | None = None
    kl: Amount | None = None

    @model_validator(mode="after")
    def _check_first(self) -> "_Row":
        if (self.method == FULL) != (self.first is not None):
            raise ValueError("the full model's answers have their first tokens, and no others do")
        return self


class _BenchmarkRow(_Row):
    """What is kept of an answer to a benchmark's question."""

    tokens: list[TokenId]
    retention: Amount
    media: str | None
    setting: dict[str, Any] | None


_ROW: TypeAdapter[_Row] = TypeAdapter(_BenchmarkRow | _Row)


def line_of(row: Mapping[str, Any]) -> str:
    """A record as a line of JSON; its checksum is the last value."""
    return json.dumps({**row, CHECKSUM: _checksum(row)}, ensure_ascii=False, separators=(",", ":")) + "\n"


def row_of(line: bytes, *, unchecked: bool = True) -> dict[str, Any]:
    """The record that a line holds, without its checksum.

    Args:
        line: As it is in the file.
        unchecked: Whether a row without a checksum is believed if every field is there and of its type, as for rows of
            "foveate eval 1". Among newer rows one is damaged.

    Raises:
        Damaged: If the line is no record, or not the one that was written.
    """
    try:
        row = json.loads(line.decode())
        if not isinstance(row, dict):
            raise Damaged("a line is no object")
        expected = row.pop(CHECKSUM, None)
        if expected is None and not unchecked:
            raise Damaged("a row has lost its checksum")
        if expected is not None and expected != _checksum(row):
            raise Damaged("a row is not what was written")
        _ROW.validate_python(row)
    except Damaged:
        raise
    except (ValueError, RecursionError) as error:
        raise Damaged("a line is no record") from error
    return row


def _checksum(row: Mapping[str, Any]) -> str:
    """The first digits of the SHA-256 of a record's JSON, its names sorted."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
