"""`Store`: the rows of a long run in a folder, one JSON object per line. Lines are only appended.

    manifest.json     what the rows depend on; a run continues only under the same conditions
    part-00000.jsonl  rows; a full part may become Parquet
    bad.jsonl         rows without a result, each with its reason; usable as an input
    broken.jsonl      lines of the input that cannot be parsed, each with its reason
    .lock             held while a run uses the folder

A killed run leaves whole lines, and perhaps half a line, which the next run removes.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from foveate.errors import InputError
from foveate.plain.files import spell
from foveate.plain.upstream import brief, first_line
from foveate.plain.writing import PART, publish
from foveate.runs.crew import end_unguarded
from foveate.runs.samples import arrow

MANIFEST, LOCK, FORMAT = "manifest.json", ".lock", "foveate run 1"
BAD, BROKEN = "bad.jsonl", "broken.jsonl"
NAME = re.compile(r"part-(\d{5,})\.(jsonl|parquet)")
ADVICE = "Free some space, and run again: nothing is lost."
PATIENCE = 5.0
"""Seconds to wait for another run in the same folder."""
SYNC = 5.0
"""Seconds after which lines are forced to the disk. A kill loses no line, a power cut those of the last seconds."""

CHECKSUM = "sha256"
DIGITS = 16
"""Hexadecimal digits of a checksum: one damaged line in 10^19 goes unnoticed."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

Row = Mapping[str, Any]
ToParquet = Callable[[Sequence[Row]], Any]
"""Converts rows to a pyarrow table."""


class Numbers:
    """A set of whole numbers below `size`, with one byte per number."""

    def __init__(self, size: int) -> None:
        self._there = bytearray(size)
        self._count = 0

    def __contains__(self, number: object) -> bool:
        return type(number) is int and 0 <= number < len(self._there) and bool(self._there[number])

    def __len__(self) -> int:
        return self._count

    def grow(self, size: int) -> None:
        """Allow numbers below a larger `size`."""
        self._there.extend(bytes(max(0, size - len(self._there))))

    def add(self, number: object) -> None:
        """Add a number.

        Raises:
            LookupError: If it is not a whole number below `size`.
        """
        if type(number) is not int or not 0 <= number < len(self._there):
            raise LookupError(number)
        self._there[number] = 1
        self._count += 1

    def remove(self, number: int) -> None:
        """Remove a number that is there."""
        self._there[number] = 0
        self._count -= 1


@dataclass(eq=False)
class Store:
    """The folder of a run. `open_store` makes it.

    Attributes:
        path: The folder.
        keys: The fields that identify a row.
        part_rows: Lines per part.
        to_parquet: Converts a full part to Parquet; None keeps JSON lines.
        checked: Whether each line has a checksum, to notice damage.
        alone: Whether no other process writes, so that damaged lines can be removed.
        manifest: What the rows depend on; empty in a new folder.
        done: The keys of all rows, including bad ones; see `read`.
        bad: Number of rows without a result.
        broken: How many of the bad rows are lines that cannot be parsed.
        damaged: Number of damaged lines found.
    """

    path: Path
    keys: Sequence[str]
    part_rows: int
    to_parquet: ToParquet | None
    checked: bool
    alone: bool

    def __post_init__(self) -> None:
        self.done: set[Any] | Numbers = set()
        self.bad = self.broken = self.damaged = 0
        self._key_of = itemgetter(*self.keys)
        self._files: dict[str, int] = {}
        self._part: str | None = None
        self._lines = 0
        self._synced = time.monotonic()
        self.manifest = _manifest(self.path / MANIFEST)
        if not self.manifest:
            _refuse_others(self.path)

    def parts(self) -> list[Path]:
        """Return the files with results, in order."""
        with os.scandir(self.path) as entries:
            return sorted(Path(entry.path) for entry in entries if NAME.fullmatch(entry.name))

    def require(self, name: str, values: object, what: str) -> None:
        """Check values against those in the manifest. Without any rows yet, store them there.

        Args:
            name: The key in the manifest.
            values: Plain values that rows depend on.
            what: What differs, for the message, such as "another input".

        Raises:
            InputError: If they differ, or cannot be written.
        """
        values = json.loads(json.dumps(values))
        difference = _difference(self.manifest.get(name), values)
        if difference is None:
            return
        files = [*self.parts(), self.path / BAD, self.path / BROKEN]
        if any(path.stat().st_size for path in files if path.exists()):
            raise InputError(
                f"{spell(self.path)} was begun with {what}: {difference}. Run it as it was begun, or name another "
                "folder."
            )
        self.put(name, values)

    def put(self, name: str, values: object) -> None:
        """Store plain values in the manifest, whatever was there.

        Raises:
            InputError: If it cannot be written.
        """
        self.manifest[name] = values
        self.write(MANIFEST, json.dumps({"format": FORMAT, **self.manifest}, indent=2).encode() + b"\n")

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the folder anew, as a whole or not at all.

        Raises:
            InputError: If it cannot be written.
        """
        _publish(self.path / name, lambda part: part.write_bytes(content))

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, done: set[Any] | Numbers, columns: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
        """Yield all rows, part by part. Rows of Parquet have only their keys and `columns`. Damaged lines are removed.

        Args:
            done: An empty set, which becomes the store's set of keys.
            columns: Further columns of Parquet to read, where they are.

        Raises:
            InputError: If rows cannot be read, or a key is invalid or occurs twice.
        """
        self.done, self.bad, self.broken = done, 0, 0
        try:
            for path in self.path.iterdir() if self.alone else ():
                # Remove unfinished files, and JSON lines that were already converted to Parquet before a kill.
                doubled = (
                    NAME.fullmatch(path.name) and path.suffix == ".jsonl" and path.with_suffix(".parquet").exists()
                )
                if path.name.startswith(PART) or doubled:
                    path.unlink()
            for path in self.parts():
                yield from self._rows_of(path, columns)
            for name in (BAD, BROKEN):
                for row in self._rows_of(self.path / name):
                    self.bad += 1
                    self.broken += name == BROKEN
                    yield row
        except OSError as error:
            raise InputError(f"{spell(self.path)} cannot be read: {error.strerror}. Check its permissions.") from error

    def _rows_of(self, path: Path, columns: Sequence[str] = ()) -> Iterator[dict[str, object]]:
        """Yield the rows of a file, and add their keys to `done`."""
        rows: Iterable[dict[str, object]]
        if path.suffix == ".parquet":
            pyarrow = arrow()
            try:
                names = [name for name in pyarrow.parquet.read_schema(path).names if name in (*self.keys, *columns)]
                rows = pyarrow.parquet.read_table(path, columns=names).to_pylist()
            except (pyarrow.ArrowException, OSError) as error:
                raise InputError(f"{spell(path)} is damaged: {first_line(error)} Remove it, and run again.") from error
        else:
            rows = self._whole_lines(path)
        for row in rows:
            key = self._key_of(row)
            try:
                if key in self.done:
                    raise LookupError(key)
                self.done.add(key)
            except (LookupError, TypeError) as error:
                raise InputError(
                    f"{spell(path)} does not belong here: remove files that were copied into the folder."
                ) from error
            yield row

    def _whole_lines(self, path: Path) -> Iterator[dict[str, object]]:
        if not path.exists():
            return
        before = self.damaged
        with path.open("rb") as file:
            for line in file:
                row = self._row_of(line)
                if row is None:
                    self.damaged += 1
                else:
                    yield row
        if self.damaged > before and self.alone:
            with path.open("rb") as file:
                lines = [line for line in file if self._row_of(line) is not None]
            _publish(path, lambda part: part.write_bytes(b"".join(lines)))

    def _row_of(self, line: bytes) -> dict[str, object] | None:
        """Return the row of a line; None if the line is incomplete, or its checksum is wrong."""
        if line.endswith(b"\n"):
            with suppress(ValueError, RecursionError, LookupError, TypeError):
                row: dict[str, object] = json.loads(line)
                self._key_of(row)
                if not self.checked or row.pop(CHECKSUM) == _checksum(row):
                    return row
        return None

    # -- writing ----------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row], bad: Sequence[Row] = (), broken: Sequence[Row] = ()) -> None:
        """Store rows. They survive a kill after this returns.

        Args:
            rows: Rows with a result.
            bad: Rows without a result.
            broken: Lines of the input that cannot be parsed.

        Raises:
            InputError: If they cannot be written, as on a full disk.
        """
        rows = list(rows)
        while rows:
            room = self._room()
            self._append(str(self._part), rows[:room])
            self._lines += len(rows[:room])
            rows = rows[room:]
        for name, lost in ((BAD, bad), (BROKEN, broken)):
            if lost:
                self._append(name, lost)
                self.bad += len(lost)
        self.broken += len(broken)
        if time.monotonic() - self._synced >= SYNC:
            self._sync()

    def forget(self, keys: Set[Any]) -> None:
        """Remove rows without a result, so that they are asked again.

        Raises:
            InputError: If they cannot be removed.
        """
        for path in (self.path / BAD, self.path / BROKEN):
            if not keys or not path.exists():
                continue
            lines = path.read_bytes().splitlines(keepends=True)
            left = [line for line in lines if self._key_of(json.loads(line)) not in keys]
            count = len(lines) - len(left)
            if count:
                self.write(path.name, b"".join(left))
                self.bad -= count
                self.broken -= count * (path.name == BROKEN)
        for key in keys:
            self.done.remove(key)

    def close(self) -> None:
        """Force all lines to the disk, and close the files."""
        try:
            self._sync()
        finally:
            for number in self._files.values():
                os.close(number)
            self._files.clear()

    def finish(self) -> None:
        """Close the store, and convert parts to Parquet if `to_parquet` is set."""
        self.close()
        self._part = None
        for path in self.parts() if self.to_parquet is not None else ():
            if path.suffix == ".jsonl":
                self._make_parquet(path)

    def _room(self) -> int:
        """Return how many lines fit into the current part. Start a new part if there is none or it is full."""
        if self._part is None:
            paths = self.parts()
            last = paths[-1] if paths else None
            self._part, self._lines = "part-00000.jsonl", 0
            if last is not None and last.suffix == ".jsonl":
                with last.open("rb") as file:
                    self._part, self._lines = last.name, sum(1 for _ in file)
            elif last is not None:
                self._part = _next(last.name)
        if self._lines >= self.part_rows:
            following = _next(self._part)
            if self.to_parquet is not None:
                self.close()
                self._make_parquet(self.path / self._part)
            self._part, self._lines = following, 0
        return self.part_rows - self._lines

    def _append(self, name: str, rows: Sequence[Row]) -> None:
        path = self.path / name
        with _explain(path):
            if name not in self._files:
                self._files[name] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
            checked = ({**row, CHECKSUM: _checksum(row)} for row in rows) if self.checked else rows
            # Values without a JSON type, such as dates, become texts. A file's name may have bytes that are not UTF-8
            # (lone surrogates in Python); the error handler writes them as JSON escapes.
            lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in checked]
            _write(self._files[name], "".join(lines).encode(errors="backslashreplace"))
        for row in rows:
            self.done.add(self._key_of(row))

    def _sync(self) -> None:
        self._synced = time.monotonic()
        for name, number in self._files.items():
            with _explain(self.path / name):
                os.fsync(number)

    def _make_parquet(self, path: Path) -> None:
        assert self.to_parquet is not None
        table = self.to_parquet([json.loads(line) for line in path.read_bytes().splitlines()])
        _publish(path.with_suffix(".parquet"), lambda part: arrow().parquet.write_table(table, part))
        path.unlink()


class Lock(FileLock):
    """A file lock that its holder cannot acquire twice.

    A separate class, because lmms-eval's loader makes `FileLock` return one object per path.
    """


@contextmanager
def open_store(
    path: Path,
    *keys: str,
    part_rows: int = 1000,
    to_parquet: ToParquet | None = None,
    checked: bool = False,
    alone: bool = True,
) -> Iterator[Store]:
    """Open the store in a folder, and lock it while the context lasts. Waits up to `PATIENCE` seconds for another run.

    Args:
        path: The folder, created if missing. A folder without write access can still be read.
        keys: The fields that identify a row.
        part_rows, to_parquet, checked: See `Store`.
        alone: Whether to lock the folder. Off for further processes of a run whose first process has locked it.

    Raises:
        InputError: If another run uses the folder, it cannot be used, or it holds something else.
    """
    end_unguarded()
    lock = Lock(path / LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if alone:
            lock.acquire(timeout=PATIENCE, poll_interval=0.1)
            with suppress(OSError):  # only for `_holder`; Windows does not allow writing to a locked file
                (path / LOCK).write_text(f"{os.getpid()}\n")
    except Timeout as error:
        raise InputError(
            f"{spell(path)} is in use by {_holder(path / LOCK)}. Wait until that run has ended, or name another folder."
        ) from error
    except OSError as error:
        alone = False
        if error.errno not in UNWRITABLE or not (path / MANIFEST).is_file() or os.access(path, os.W_OK):
            raise InputError(f"{spell(path)} cannot be used: {error.strerror}. Name another folder.") from error
    try:
        store = Store(path, keys, part_rows, to_parquet, checked, alone)
        try:
            yield store
        except BaseException:
            with suppress(InputError):  # raise the error that ended the run, not this one
                store.close()
            raise
        store.finish()
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    """Return who holds a lock, as a text."""
    with suppress(OSError, ValueError):
        return f"another run, process {int(lock.read_text())}"
    return "another run"


def _manifest(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{spell(path)} cannot be read: {error.strerror}. Name another folder.") from error
    with suppress(ValueError, RecursionError):
        manifest = json.loads(text)
        if isinstance(manifest, dict) and manifest.pop("format", None) == FORMAT:
            return manifest
    raise InputError(f"{spell(path)} is damaged, or of another version of foveate. Name another folder.")


def _refuse_others(path: Path) -> None:
    """Refuse a folder that is not empty and has no manifest."""
    for entry in path.iterdir():
        if entry.name != LOCK and not entry.name.startswith(PART):
            raise InputError(
                f"{spell(path)} is not empty and holds no run: there is {brief(entry.name)}. Name an empty folder, or "
                "a new one."
            )


def _next(name: str) -> str:
    """Return the name of the next part."""
    parts = NAME.fullmatch(name)
    assert parts is not None
    return f"part-{int(parts[1]) + 1:05}.jsonl"


def _checksum(row: Row) -> str:
    """Return the first digits of the SHA-256 of a row's JSON with sorted keys."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _write(number: int, content: bytes) -> None:
    """Append all of the content to an open file, or nothing."""
    before = os.fstat(number).st_size
    view = memoryview(content)
    try:
        while view:
            view = view[os.write(number, view) :]
    except OSError:
        os.ftruncate(number, before)
        raise


@contextmanager
def _explain(path: Path) -> Iterator[None]:
    """Turn an OSError on writing a file into an `InputError`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{spell(path)} could not be written: {error.strerror}. {ADVICE}") from error


def _publish(path: Path, write: Callable[[Path], object]) -> None:
    publish(path, write, force=True, durable=True, advice=ADVICE)


def _difference(before: object, now: object, place: str = "") -> str | None:
    """Describe the first value that differs; None if all are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            difference = _difference(before.get(key), now.get(key), f"{place} {key}".strip())
            if difference is not None:
                return difference
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = list(zip(before, now, strict=True))
        if all(isinstance(value, dict) for pair in pairs for value in pair):
            return next(filter(None, (_difference(*pair, place) for pair in pairs)), None)
    if before == now:
        return None
    return f"{place} was {brief(before, 60)}, and is {brief(now, 60)}"
