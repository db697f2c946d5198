"""A first pass over an input: how many rows it has, and whether every id is there only once."""

from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np

from foveate._upstream import brief, printable
from foveate.batch.rows import ID, Bad, Columns, Row, Unreadable, row_of
from foveate.batch.sources import Folder, Source
from foveate.errors import InputError, SettingError

__all__ = ["Table", "count_rows"]


@dataclass(frozen=True)
class Table:
    """An input, and how its rows are read.

    Attributes:
        source: Where records come from.
        columns: What its columns are called; a folder has its own.
        question: Asked of every row; None reads the column.
        root: The folder that relative paths start from; None is the input's own.

    Raises:
        SettingError: If it is a folder and there is no question.
    """

    source: Source
    columns: Columns = Columns()
    question: str | None = None
    root: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, Folder) and self.question is None:
            raise SettingError(f"What is asked about the files of {self.source.path}? Give one question for all.")

    def settled(self) -> "Table":
        """The same with its rows numbered, where no column was named for ids and there is none.

        Raises:
            InputError: If it cannot be read.
        """
        if isinstance(self.source, Folder) or self.columns.id is not None or self.columns.numbered:
            return self
        for record in self.source.records():
            with suppress(Unreadable):
                if ID in self.source.values(record):
                    return self
        return replace(self, columns=replace(self.columns, numbered=True))

    def rows(self, skip: Callable[[int], bool] | None = None) -> Iterator[Row | Bad]:
        """Its rows in order, without those whose number is to be skipped.

        Raises:
            InputError: If it cannot be read.
        """
        root = self.source.root
        columns = self.columns
        if isinstance(self.source, Folder):
            columns = Columns()
        elif self.root is not None:
            root = self.root
        for number, record in enumerate(self.source.records()):
            if skip is not None and skip(number):
                continue
            try:
                values = self.source.values(record)
            except Unreadable as error:
                yield Bad(number, str(error))
                continue
            yield row_of(number, values, columns, self.question, root)


def count_rows(table: Table) -> int:
    """How many rows an input has.

    Only eight bytes of each id are held; where two of them agree, the ids themselves are looked at.

    Raises:
        InputError: If it has none, no row can be asked, or an id is there twice.
    """
    hashes = array("Q")
    count, readable, first_bad = 0, False, None
    for row in table.rows():
        count += 1
        readable = readable or isinstance(row, Row)
        if isinstance(row, Bad):
            first_bad = first_bad or row
        if row.id is not None:
            hashes.append(_hash(row.id))
    if not count:
        raise InputError(f"{printable(str(table.source.path))} has no row.")
    if not readable and first_bad is not None:
        raise InputError(
            f"No row of {printable(str(table.source.path))} can be asked. Row 0: {first_bad.reason} "
            "Say what the columns are called, or correct the input."
        )
    ordered = np.sort(np.frombuffer(hashes, dtype=np.uint64))
    twice = {int(value) for value in ordered[1:][ordered[1:] == ordered[:-1]]}
    if twice:
        _refuse_twice(table, twice)
    return count


def _refuse_twice(table: Table, hashes: set[int]) -> None:
    """Refuse an id that is there twice, among those with these hashes."""
    seen: dict[str, int] = {}
    for row in table.rows():
        if row.id is None or _hash(row.id) not in hashes:
            continue
        first = seen.setdefault(row.id, row.number)
        if first != row.number:
            raise InputError(
                f"The id {brief(row.id)} is there twice, in rows {first} and {row.number} (from 0). "
                "Make ids unique, or take the row's number in the place of the column."
            )


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")
