"""`number_rows`: give the rows of an input their numbers in a job. They stay theirs when the input grows.

    .rows    in the job's folder: what each row is known by, and its content; one JSON list per line, by number

A file of a folder is known by its name, a row of a table by its id, or without one by its place. New rows may come
anywhere, and bad rows that have changed are asked again. What has an answer may neither change nor go. The manifest
says how many lines count, so that no harm is done if a run is killed between writing the two files.
"""

import json
from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

from foveate.errors import InputError
from foveate.plain.files import spell
from foveate.plain.upstream import printable
from foveate.runs.samples import Samples
from foveate.runs.store import Store

LISTED = ".rows"
SHOWN = 3
"""Rows that an error names."""
GONE = ""
"""The content of a row that is gone, and had no answer then."""


class KnownRow(NamedTuple):
    """A row of a job: its name, or its place in the input, and a short text of its content."""

    name: str | int
    content: str


class Numbering:
    """Finds the numbers of an input's rows in a job.

    Args:
        known: The rows of the job, by number.

    Attributes:
        numbers: The number of each row of the input, in the input's order.
        new: The lines of rows that are new in the job.
        changed: Rows whose content is another one, by number.
    """

    def __init__(self, known: Iterator[KnownRow]) -> None:
        self.numbers = array("q")
        self.new = bytearray()
        self.changed: dict[int, KnownRow] = {}
        self._known = enumerate(known)
        self._unseen: dict[object, tuple[int, KnownRow]] = {}
        self._new_places: list[int] = []

    def take(self, name: str | None, content: str) -> None:
        """Find the number of the input's next row."""
        place = len(self.numbers)
        key = place if name is None else name
        while key not in self._unseen and (row := next(self._known, None)) is not None:
            self._unseen[_key_of(*row)] = row
        number, before = self._unseen.pop(key, (-1, None))
        self.numbers.append(number)
        if before is None:
            self._new_places.append(place)
            self.new += _line_of(KnownRow(key, content))
        elif before.content != content:
            self.changed[number] = KnownRow(key, content)

    def gone(self) -> dict[int, KnownRow]:
        """Return the rows that the input does not have, by number, when all rows of the input are taken."""
        return dict(self._unseen.values()) | dict(self._known)

    def finish(self, rows: int, free: Sequence[int]) -> int:
        """Number the new rows: with `free` numbers first, then from `rows` on. Return the job's rows."""
        new = bytes(self.new).splitlines(keepends=True)
        for place, line, number in zip(self._new_places, new, chain(free, count(rows)), strict=False):
            self.numbers[place] = number
            if number < rows:
                self.changed[number] = KnownRow(*json.loads(line))
        self.new = bytearray(b"".join(new[len(free) :]))
        return rows + max(0, len(new) - len(free))


def _key_of(number: int, entry: KnownRow) -> object:
    if entry.content == GONE:
        return (number,)  # no row that comes is this one
    return entry.name


def number_rows(samples: Samples, store: Store, bad: Set[int]) -> tuple[Samples, Mapping[int, KnownRow], Set[int]]:
    """Number the rows of a job's input, and store them. An input that is as it was is not read through again.

    Args:
        samples: The samples.
        store: The job's folder, whose rows have been read. Bad rows that have changed are removed.
        bad: The numbers of its bad rows.

    Returns:
        The samples with their numbers, the rows that are not done and gone, by number, and the numbers of those that
        have changed since the last run.

    Raises:
        InputError: If a row with an answer has changed or gone, the input cannot be read, or the job's folder cannot be
            written.
    """
    path, digest = store.path / LISTED, samples.source.digest()
    before = store.manifest.get("input", {}) if len(store.done) else {}
    is_same = before.get("sha256") == digest
    is_listed = "in order" in before and path.is_file()
    if is_same and (not store.alone or (is_listed and before["in order"])):
        return samples, {}, set()
    rows = int(before["rows"]) if is_listed else 0
    numbering = Numbering(_entries(path, rows))
    size = samples.count(numbering.take)
    if before and not is_listed and not (is_same and before.get("in order", True)):
        raise InputError(
            f"{spell(store.path)} has no list of its rows, as earlier versions of foveate wrote none, and "
            f"{samples.source.name} has changed since it was begun: it had {before['rows']:,} rows, and has {size:,}. "
            "Make it what it was, or name another folder."
        )
    gone = numbering.gone()
    answered = [number for number in (*gone, *numbering.changed) if number in store.done and number not in bad]
    if answered:
        raise _of_other_rows(samples, store, answered, gone, numbering.changed)
    # Rows that come take the numbers of those that are gone without an answer, such as a line that was mended.
    size = numbering.finish(rows, sorted(gone))
    gone = {number: entry for number, entry in gone.items() if number not in numbering.changed}
    store.forget(bad & numbering.changed.keys())
    numbers = numbering.numbers
    in_order = not gone and all(number == place for place, number in enumerate(numbers))
    if not is_same or not is_listed:
        other = numbering.changed | {number: KnownRow(entry.name, GONE) for number, entry in gone.items()}
        store.write(LISTED, b"".join([*_lines(path, rows, other), numbering.new]))
        store.put("input", {"sha256": digest, "rows": size, "in order": in_order})
    samples = samples if in_order else replace(samples, numbers=numbers)
    left = {number: entry for number, entry in gone.items() if number not in store.done}
    return samples, left, numbering.changed.keys()


def _of_other_rows(
    samples: Samples, store: Store, rows: Sequence[int], gone: Mapping[int, KnownRow], changed: Mapping[int, KnownRow]
) -> InputError:
    """Return the error for rows with an answer that have gone or changed."""
    said = []
    for what, entries in (("gone", gone), ("changed", changed)):
        names = [entries[number].name for number in sorted(rows) if number in entries]
        shown = [f"row {name}" if isinstance(name, int) else printable(name) for name in names[:SHOWN]]
        if names:
            more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
            said.append(f"{what}: {', '.join(shown)}{more}")
    return InputError(
        f"{spell(store.path)} was begun with another input: of the rows of {samples.source.name} that are answered, "
        f"{'; '.join(said)}. Make them what they were, or name another folder. New rows may come."
    )


# -- the list ------------------------------------------------------------------------------------------------------


def _entries(path: Path, rows: int) -> Iterator[KnownRow]:
    """Yield the first rows of the list.

    Raises:
        InputError: If it is damaged.
    """
    if not rows:
        return
    read = 0
    with suppress(ValueError, TypeError), path.open("rb") as file:
        for line in islice(file, rows):
            yield KnownRow(*json.loads(line))
            read += 1
    if read < rows:
        raise InputError(f"{spell(path)} is damaged: it has {read:,} of {rows:,} rows. Name another folder.")


def _line_of(entry: KnownRow) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _lines(path: Path, rows: int, other: Mapping[int, KnownRow]) -> Iterator[bytes]:
    """Yield the first lines of the list, or those of others in their place."""
    for number, entry in enumerate(_entries(path, rows)):
        yield _line_of(other.get(number, entry))
