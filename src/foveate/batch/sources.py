"""Inputs, read as they are needed: JSON lines, CSV, Parquet, and folders. None is ever held whole."""

import csv
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any, BinaryIO

from foveate._files import named, open_readable
from foveate._upstream import first_line, install_line, printable
from foveate.batch.rows import Unreadable
from foveate.errors import InputError, UnsupportedError

__all__ = ["ENDINGS", "Source", "arrow", "source_of"]

LINE = 2**24
"""The longest line of JSON, in bytes. A longer one is no row."""
TOO_LONG = b""
READ = 1024
"""Rows of a Parquet file that are read at a time."""


class Source(ABC):
    """An input.

    Args:
        path: A file, or a folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def root(self) -> str:
        """The folder that relative paths in it start from."""
        return os.path.abspath(self.path.parent)

    @abstractmethod
    def records(self) -> Iterator[Any]:
        """What it holds, a row each, not yet looked into.

        Raises:
            InputError: If it cannot be read.
        """

    @abstractmethod
    def values(self, record: Any) -> Mapping[str, Any]:
        """A record's values by column.

        Raises:
            Unreadable: If it has none.
        """

    def digest(self) -> str:
        """SHA-256 of all that it holds."""
        with open_readable(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader


class JsonLines(Source):
    """An object a line. Blank lines do not count."""

    def records(self) -> Iterator[bytes]:
        with open_readable(self.path) as file:
            start = b"\xef\xbb\xbf"
            while line := file.readline(LINE):
                if len(line) == LINE and not line.endswith(b"\n"):
                    _skip_line(file)
                    yield TOO_LONG
                elif text := line.removeprefix(start).strip():
                    yield text
                start = b""

    def values(self, record: bytes) -> Mapping[str, Any]:
        if record is TOO_LONG:
            raise Unreadable(f"The line has more than {LINE:,} bytes.")
        try:
            values = json.loads(record)
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"The line is no JSON: {first_line(error)}") from error
        if not isinstance(values, dict):
            raise Unreadable(f"A line is a JSON object; got a {type(values).__name__}.")
        return values


def _skip_line(file: BinaryIO) -> None:
    """Read on to the end of the line, and keep none of it."""
    while (piece := file.readline(LINE)) and not piece.endswith(b"\n"):
        pass


class Csv(Source):
    """Cells by the names in the first line; several pictures are written as a JSON list."""

    def records(self) -> Iterator[tuple[list[str], list[str] | csv.Error]]:
        with open_readable(self.path) as binary:
            text = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            # Strict: a quote that is never closed is told; else all the rows behind it would be one cell.
            reader = csv.reader(text, delimiter="\t" if self.path.suffix.lower() == ".tsv" else ",", strict=True)
            names = self._names(reader)
            while True:
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield names, error
                    continue
                if cells:
                    yield names, cells

    def _names(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            names = next(reader, [])
        except csv.Error as error:
            raise InputError(f"{named(self.path)} has no line with the names of its columns: {error}.") from error
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"{named(self.path)} has two columns {twice[0]!r}. Rename one.")
        return names

    def values(self, record: tuple[list[str], list[str] | csv.Error]) -> Mapping[str, Any]:
        names, cells = record
        if isinstance(cells, csv.Error):
            raise Unreadable(f"The line is no CSV: {cells}.")
        if len(cells) > len(names):
            raise Unreadable(f"The line has {len(cells)} cells, and there are {len(names)} columns.")
        return {name: _cell(cell) for name, cell in zip(names, cells, strict=False) if cell}


def _cell(cell: str) -> Any:
    """A cell's text, or the list of texts that it holds."""
    if not cell.startswith("["):
        return cell
    try:
        values = json.loads(cell)
    except (ValueError, RecursionError):
        return cell  # a name or a question may begin with a bracket
    return values if all(isinstance(value, str) for value in values) else cell


class Parquet(Source):
    """A Parquet file, some rows at a time."""

    def records(self) -> Iterator[Mapping[str, Any]]:
        pyarrow = arrow()
        try:
            with open_readable(self.path) as binary, pyarrow.parquet.ParquetFile(binary) as file:
                for batch in file.iter_batches(batch_size=READ):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{named(self.path)} is no Parquet file, or is damaged: {first_line(error)}") from error

    def values(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return record


class Folder(Source):
    """Every file of a folder and of those in it is a row, by name. Names that begin with a dot do not count.

    Links to files are followed; a link to a folder is a row that cannot be read.
    """

    @property
    def root(self) -> str:
        return os.path.abspath(self.path)

    def records(self) -> Iterator[str]:
        yield from self._below("")

    def _below(self, folder: str) -> Iterator[str]:
        place = os.path.join(self.path, folder)
        try:
            with os.scandir(place) as entries:
                names = [
                    entry.name + "/" * entry.is_dir(follow_symlinks=False)
                    for entry in entries
                    if not entry.name.startswith(".")
                ]
        except OSError as error:
            raise InputError(f"{named(Path(place))} cannot be listed: {error.strerror}. Check its rights.") from error
        for name in sorted(names):
            if name.endswith("/"):
                yield from self._below(folder + name)
            else:
                yield folder + name

    def values(self, record: str) -> Mapping[str, Any]:
        return {"media": record, "id": printable(record)}

    def digest(self) -> str:
        """SHA-256 of its files' names, sizes and times. Their contents are not read."""
        whole = hashlib.sha256()
        for name in self.records():
            status = os.lstat(os.path.join(self.path, name))
            whole.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()


ENDINGS: dict[str, type[Source]] = {
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".csv": Csv,
    ".tsv": Csv,
    ".parquet": Parquet,
}


def source_of(path: Path) -> Source:
    """The input at a path, by its ending.

    Raises:
        InputError: If it cannot be read, or its ending is none of `ENDINGS`.
        UnsupportedError: If it is a Parquet file and there is no pyarrow.
    """
    if path.is_dir():
        return Folder(path)
    with open_readable(path) as file:
        packed = file.read(2) == b"\x1f\x8b"
    kind = ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"{named(path)}: an input is a folder, or its name ends in {', '.join(ENDINGS)}.")
    if packed:
        raise InputError(f"{named(path)} is packed with gzip. Unpack it first.")
    if kind is Parquet:
        arrow()
    return kind(path)


def arrow() -> Any:
    """The package pyarrow, with its part that reads and writes Parquet.

    Raises:
        UnsupportedError: If it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(f"Parquet needs pyarrow: {install_line('batch')}. JSONL and CSV do not.") from error
    return pyarrow
