"""Rows of a long run in a folder: a JSON object a line, only ever appended to.

    manifest.json     what the rows depend on; a run goes on only with the same
    part-00000.jsonl  rows; a part that is full may become Parquet
    bad.jsonl         rows without a result, each with its reason; they can be an input again
    broken.jsonl      lines of the input that are no rows, each with its reason
    .lock             held while a run uses the folder

A run that is killed leaves whole lines, and perhaps half of one, which the next run takes out.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
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
ADVICE = "Make room, and run again: nothing is lost."
PATIENCE = 5.0
"""Seconds to wait for another run in the same folder."""
SYNC = 5.0
"""Seconds after which lines are forced to the disk. A kill loses none; a power cut, the last seconds'."""

CHECKSUM = "sha256"
DIGITS = 16
"""Of a checksum: one damaged line in 10^19 passes."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)

Row = Mapping[str, Any]
ToParquet = Callable[[Sequence[Row]], Any]
"""The table of pyarrow that rows make."""


class Numbers:
    """Numbers below `size`: a million of them take a megabyte."""

    def __init__(self, size: int) -> None:
        self._there = bytearray(size)
        self._count = 0

    def __contains__(self, number: object) -> bool:
        return type(number) is int and 0 <= number < len(self._there) and bool(self._there[number])

    def __len__(self) -> int:
        return self._count

    def add(self, number: object) -> None:
        """Put one in.

        Raises:
            LookupError: If it cannot be one.
        """
        if type(number) is not int or not 0 <= number < len(self._there):
            raise LookupError(number)
        self._there[number] = 1
        self._count += 1


class Store:
    """The folder of a run; made by `open_store`.

    Args:
        path: The folder.
        keys: The fields that a row is known by.
        part_rows: Lines of a part.
        to_parquet: Makes a part that is full Parquet; None leaves JSON lines.
        checked: Whether each line has a checksum, so that none can be damaged unseen.
        alone: Whether nobody else writes, so that what is damaged can be taken out.

    Attributes:
        manifest: What the rows depend on; empty where there is none yet.
        done: The keys of all rows, bad ones too; see `read`.
        bad: How many rows have no result, and of these `broken` are lines that are no rows.
        damaged: How many lines were damaged.
    """

    def __init__(
        self,
        path: Path,
        keys: Sequence[str],
        part_rows: int,
        to_parquet: ToParquet | None,
        checked: bool,
        alone: bool,
    ) -> None:
        self.path = path
        self.done: set[Any] | Numbers = set()
        self.bad = self.broken = self.damaged = 0
        self._keys = tuple(keys)
        self._key_of = itemgetter(*keys)
        self._checked = checked
        self._alone = alone
        self._part_rows = part_rows
        self._to_parquet = to_parquet
        self._files: dict[str, int] = {}
        self._part: str | None = None
        self._lines = 0
        self._synced = time.monotonic()
        self.manifest = _manifest(path / MANIFEST)
        if not self.manifest:
            _refuse_others(path)

    def parts(self) -> list[Path]:
        """The files with rows, but for that of the bad ones, in their order."""
        with os.scandir(self.path) as entries:
            return sorted(Path(entry.path) for entry in entries if NAME.fullmatch(entry.name))

    def require(self, name: str, values: object, what: str) -> None:
        """Refuse to go on with others than the rows that are there depend on; where there are none, remember these.

        Args:
            name: In the manifest.
            values: Plain values.
            what: What would be other, in words.

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
        self.manifest[name] = values
        content = json.dumps({"format": FORMAT, **self.manifest}, indent=2).encode() + b"\n"
        _publish(self.path / MANIFEST, lambda part: part.write_bytes(content))

    # -- reading ----------------------------------------------------------------------------------------------

    def read(self, done: set[Any] | Numbers) -> Iterator[dict[str, Any]]:
        """All rows, in the order of their parts; of Parquet, their keys. Damaged lines are taken out.

        Args:
            done: Empty; becomes the store's set of keys.

        Raises:
            InputError: If they cannot be read, or a key is there twice or can be none.
        """
        self.done, self.bad, self.broken = done, 0, 0
        try:
            for path in self.path.iterdir() if self._alone else ():
                # What was not finished, and lines of which a whole Parquet is there: a run was killed between.
                doubled = (
                    NAME.fullmatch(path.name) and path.suffix == ".jsonl" and path.with_suffix(".parquet").exists()
                )
                if path.name.startswith(PART) or doubled:
                    path.unlink()
            for path in self.parts():
                yield from self._rows_of(path)
            for name in (BAD, BROKEN):
                for row in self._rows_of(self.path / name):
                    self.bad += 1
                    self.broken += name == BROKEN
                    yield row
        except OSError as error:
            raise InputError(f"{spell(self.path)} cannot be read: {error.strerror}. Check its rights.") from error

    def _rows_of(self, path: Path) -> Iterator[dict[str, object]]:
        """The rows of a file, whose keys are remembered."""
        rows: Iterable[dict[str, object]]
        if path.suffix == ".parquet":
            pyarrow = arrow()
            try:
                rows = pyarrow.parquet.read_table(path, columns=list(self._keys)).to_pylist()
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
                    f"{spell(path)} does not belong here: remove what was copied into the folder."
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
        if self.damaged > before and self._alone:
            with path.open("rb") as file:
                lines = [line for line in file if self._row_of(line) is not None]
            _publish(path, lambda part: part.write_bytes(b"".join(lines)))

    def _row_of(self, line: bytes) -> dict[str, object] | None:
        """The row of a line; None where it is not whole, or not what was written."""
        if line.endswith(b"\n"):
            with suppress(ValueError, RecursionError, LookupError, TypeError):
                row: dict[str, object] = json.loads(line)
                self._key_of(row)
                if not self._checked or row.pop(CHECKSUM) == _checksum(row):
                    return row
        return None

    # -- writing ----------------------------------------------------------------------------------------------

    def add(self, rows: Sequence[Row], bad: Sequence[Row] = (), broken: Sequence[Row] = ()) -> None:
        """Keep rows, those without a result, and lines that are no rows. A kill behind this loses none.

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

    def close(self) -> None:
        """Give back the files; all is on the disk behind it."""
        try:
            self._sync()
        finally:
            for number in self._files.values():
                os.close(number)
            self._files.clear()

    def finish(self) -> None:
        """Close it, and make parts Parquet where they shall be."""
        self.close()
        self._part = None
        for path in self.parts() if self._to_parquet is not None else ():
            if path.suffix == ".jsonl":
                self._make_parquet(path)

    def _room(self) -> int:
        """How many lines the part takes that is open; opens one."""
        if self._part is None:
            paths = self.parts()
            last = paths[-1] if paths else None
            self._part, self._lines = "part-00000.jsonl", 0
            if last is not None and last.suffix == ".jsonl":
                with last.open("rb") as file:
                    self._part, self._lines = last.name, sum(1 for _ in file)
            elif last is not None:
                self._part = _next(last.name)
        if self._lines >= self._part_rows:
            following = _next(self._part)
            if self._to_parquet is not None:
                self.close()
                self._make_parquet(self.path / self._part)
            self._part, self._lines = following, 0
        return self._part_rows - self._lines

    def _append(self, name: str, rows: Sequence[Row]) -> None:
        path = self.path / name
        with _explain(path):
            if name not in self._files:
                self._files[name] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o666)
            checked = ({**row, CHECKSUM: _checksum(row)} for row in rows) if self._checked else rows
            # What JSON does not know, such as a date, is a text. In the name of a file there may be bytes that are no
            # UTF-8; the error handler writes them as JSON's own escapes.
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
        assert self._to_parquet is not None
        table = self._to_parquet([json.loads(line) for line in path.read_bytes().splitlines()])
        _publish(path.with_suffix(".parquet"), lambda part: arrow().parquet.write_table(table, part))
        path.unlink()


class Lock(FileLock):
    """A lock that its holder cannot take again; of `FileLock`, lmms-eval's loader gives one object for each path."""


@contextmanager
def open_store(
    path: Path,
    *keys: str,
    part_rows: int = 1000,
    to_parquet: ToParquet | None = None,
    checked: bool = False,
    alone: bool = True,
    note: Callable[[str], object] = str,
) -> Iterator[Store]:
    """The store in a folder; while the context lasts, no other run uses it.

    Args:
        path: The folder, created if it is missing. One that cannot be written to can still be read.
        keys: The fields that a row is known by.
        part_rows, to_parquet, checked: See `Store`.
        alone: Off for a process of a run whose first process has it open: then nothing is locked.
        note: Hears that another run is waited for.

    Raises:
        InputError: If another run uses it, it cannot be used, or holds something else.
    """
    end_unguarded()
    lock = Lock(path / LOCK)
    try:
        path.mkdir(parents=True, exist_ok=True)
        if alone:
            acquire(lock, path, note)
    except OSError as error:
        alone = False
        if error.errno not in UNWRITABLE or not (path / MANIFEST).is_file() or os.access(path, os.W_OK):
            raise InputError(f"{spell(path)} cannot be used: {error.strerror}. Name another folder.") from error
    try:
        store = Store(path, keys, part_rows, to_parquet, checked, alone)
        try:
            yield store
        except BaseException:
            with suppress(InputError):  # what ended the run is the error to be told
                store.close()
            raise
        store.finish()
    finally:
        lock.release()


def acquire(lock: Lock, path: Path, note: Callable[[str], object]) -> None:
    """Take the lock of a folder, and say who has it while it is waited for.

    Raises:
        InputError: If that lasts.
    """
    own = Path(lock.lock_file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"{spell(path)} is in use by {_holder(own)}; waiting up to {PATIENCE:g} s")
            lock.acquire(timeout=PATIENCE, poll_interval=0.1)
    except Timeout as error:
        raise InputError(
            f"{spell(path)} is in use by {_holder(own)}. Wait until that run has ended, or name another folder."
        ) from error
    with suppress(OSError):  # only for the sentence above; Windows lets nobody write here
        own.write_text(f"{os.getpid()}\n")


def _holder(lock: Path) -> str:
    """Who holds a lock, in words."""
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
    """Refuse a folder that holds something, where no run was begun."""
    for entry in path.iterdir():
        if entry.name != LOCK and not entry.name.startswith(PART):
            raise InputError(
                f"{spell(path)} is not empty and holds no run: there is {brief(entry.name)}. Name an empty folder, or "
                "a new one."
            )


def _next(name: str) -> str:
    """The name of the part behind this one."""
    parts = NAME.fullmatch(name)
    assert parts is not None
    return f"part-{int(parts[1]) + 1:05}.jsonl"


def _checksum(row: Row) -> str:
    """The first digits of the SHA-256 of a row's JSON, its names sorted."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _write(number: int, content: bytes) -> None:
    """Append all of it, or nothing."""
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
    """Say in one line that a file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{spell(path)} could not be written: {error.strerror}. {ADVICE}") from error


def _publish(path: Path, write: Callable[[Path], object]) -> None:
    publish(path, write, force=True, durable=True, advice=ADVICE)


def _difference(before: object, now: object, place: str = "") -> str | None:
    """The first value that differs, in words; None where all are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            difference = _difference(before.get(key), now.get(key), f"{place} {key}".strip())
            if difference is not None:
                return difference
        return None
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        differences = (_difference(*pair, place) for pair in zip(before, now, strict=True))
        return next(filter(None, differences), None)
    if before == now:
        return None
    return f"{place} was {brief(before, 60)}, and is {brief(now, 60)}"
