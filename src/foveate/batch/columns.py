"""Batches of rows as engines hand them over, read into one form: a list of values for each column."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from foveate.errors import InputError, SettingError
from foveate.plain.upstream import brief, first_line
from foveate.runs.samples import SampleColumns, arrow

PICTURE = 3
"""Dimensions of one picture as an array. A column of them has one more."""


def columns_of(batch: Any) -> dict[str, list[Any]]:
    """Return the columns of a batch.

    Args:
        batch: Columns by name, as lists or arrays; a pandas or polars frame, an Arrow table or record batch, or any
            other object with `items`, `__arrow_c_stream__` or `to_pydict`; or a list of rows, each a mapping.

    Raises:
        InputError: If two columns have the same name, or a column cannot be read.
        SettingError: If it is nothing of this, or one row; or columns have not the same length.
        UnsupportedError: If it is an Arrow table and pyarrow is not installed.
    """
    named = _columns_in(batch)
    twice = [name for name, times in Counter(name for name, _ in named).items() if times > 1]
    if twice:
        raise InputError(f"The batch has two columns {twice[0]!r}. Rename one.")
    columns = {name: _values(name, values) for name, values in named}
    counts = {name: len(values) for name, values in columns.items()}
    if len(set(counts.values())) > 1:
        raise SettingError(f"Columns must have the same length; got {brief(counts)}.")
    return columns


def _columns_in(batch: Any) -> list[tuple[str, Any]]:
    """Return the names and values of a batch's columns, in order."""
    if isinstance(batch, list | tuple) and all(isinstance(row, Mapping) for row in batch):
        names = dict.fromkeys(name for row in batch for name in row)
        return [(name, [row.get(name) for row in batch]) for name in names]
    if hasattr(batch, "items"):  # a mapping, or a frame of pandas, which is none
        return list(batch.items())
    if hasattr(batch, "to_dict") and hasattr(batch, "get_columns"):  # polars, also without pyarrow
        return list(batch.to_dict(as_series=False).items())
    if hasattr(batch, "__arrow_c_stream__") or hasattr(batch, "__arrow_c_array__"):
        table = arrow().table(batch)
        return list(zip(table.column_names, table.columns, strict=True))
    if hasattr(batch, "to_pydict"):  # Daft
        return list(batch.to_pydict().items())
    raise SettingError(
        f"A batch must be columns by name, a pandas, polars or Arrow table, or a list of rows; got {brief(batch)}. "
        'Write it as {"image": [path, …]}.'
    )


def _values(name: str, values: Any) -> list[Any]:
    """Return a column's values as a list, and refuse a single value."""
    dimensions = getattr(values, "ndim", None)
    kind = getattr(getattr(values, "dtype", None), "kind", "u")  # torch's tensors and frames have none
    is_picture = name in SampleColumns().media and dimensions in (2, PICTURE) and kind in "uif"
    is_column = hasattr(values, "__len__") and hasattr(values, "__getitem__") and dimensions != 0
    if is_picture or not is_column or isinstance(values, str | bytes | bytearray | memoryview | Mapping):
        raise SettingError(
            f"The column {name!r} must have a value for each row, as a list or array; got {brief(values)}. "
            f"For one row, write {{{name!r}: […]}} with its value in the list."
        )
    try:
        return list(values.to_pylist() if hasattr(values, "to_pylist") else values)
    except Exception as error:  # Arrow's and other libraries' values that Python cannot represent
        raise InputError(f"The column {name!r} cannot be read: {first_line(error)} Leave it out.") from error
