"""A part of the output: some rows in a file, JSON lines or Parquet, written whole or not at all."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foveate._writing import publish
from foveate.batch.rows import Answered
from foveate.batch.sources import arrow

__all__ = ["FORMATS", "line_of", "part_name", "range_of", "write_part"]

ADVICE = "Make room, and run again: nothing is lost."
NAME = re.compile(r"part-(\d{10,})-(\d{10,})\.(jsonl|parquet)")


def part_name(first: int, last: int, kind: str) -> str:
    """The name of the part with these rows; those in between that it does not hold are bad."""
    return f"part-{first:010}-{last:010}.{kind}"


def range_of(name: str, kind: str) -> tuple[int, int] | None:
    """The first and last row of the part with this name; None where it names none of this kind."""
    match = NAME.fullmatch(name)
    if match is None or match[3] != kind:
        return None
    return int(match[1]), int(match[2])


def line_of(values: dict[str, Any]) -> bytes:
    """A line of JSON in UTF-8."""
    # In the name of a file there may be bytes that are no UTF-8; the error handler writes them as JSON's own escapes.
    return (json.dumps(values, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_part(path: Path, rows: Sequence[Answered]) -> None:
    """Write a part; it is on the disk when this returns.

    Raises:
        InputError: If it cannot be written, as on a full disk; nothing is left then.
    """
    write = FORMATS[path.suffix.removeprefix(".")]
    publish(path, lambda file: write(file, rows), force=True, durable=True, advice=ADVICE)


def _write_lines(path: Path, rows: Sequence[Answered]) -> None:
    path.write_bytes(b"".join(line_of(row.to_dict()) for row in rows))


def _write_parquet(path: Path, rows: Sequence[Answered]) -> None:
    pyarrow = arrow()
    text, number, real = pyarrow.string(), pyarrow.int64(), pyarrow.float64()
    schema = pyarrow.schema(
        [
            ("row", number),
            ("id", text),
            ("answer", text),
            ("retention", real),
            ("vision_tokens", number),
            ("tokens", real),
            ("new_tokens", number),
            ("prepare_seconds", real),
            ("answer_seconds", real),
            ("notes", pyarrow.list_(text)),
        ]
    )
    table = pyarrow.Table.from_pylist([row.to_dict() for row in rows], schema=schema)
    pyarrow.parquet.write_table(table, path)


FORMATS: dict[str, Callable[[Path, Sequence[Answered]], None]] = {"jsonl": _write_lines, "parquet": _write_parquet}
