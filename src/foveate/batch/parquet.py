"""Rows as a table for Parquet: our columns typed, those of the input as they come."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foveate.runs.samples import arrow

__all__ = ["KEY", "OURS", "REASON", "table_of"]

KEY = "row"
"""The column with a row's place in the input."""
REASON = "reason"
"""That with the reason why there is no answer."""
OURS = {
    KEY: "int64",
    "id": "string",
    "answer": "string",
    "retention": "float64",
    "vision_tokens": "int64",
    "tokens": "float64",
    "new_tokens": "int64",
    "prepare_seconds": "float64",
    "answer_seconds": "float64",
    "notes": "list",
}
"""The columns of an answer, by their type in Parquet."""


def table_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The table of pyarrow; a column whose values are of several kinds becomes their JSON."""
    names = dict.fromkeys(name for row in rows for name in row)
    return arrow().table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> Any:
    pyarrow = arrow()
    kind = pyarrow.list_(pyarrow.string()) if OURS.get(name) == "list" else OURS.get(name)
    if kind is None and all(value is None for value in values):
        kind = pyarrow.string()
    try:
        return pyarrow.array(values, type=kind)
    except (pyarrow.ArrowException, UnicodeEncodeError, OverflowError):
        return pyarrow.array([None if value is None else json.dumps(value) for value in values], type=pyarrow.string())
