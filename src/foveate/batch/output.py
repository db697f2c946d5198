"""The folder of a job: what it was begun with, parts with answers, and a file with the rows that have none.

    manifest.json    input, settings and model; a job goes on only with the same
    part-A-B.jsonl   the answers to rows A to B, but for the bad ones among them; the name says that all are done
    bad.jsonl        those bad rows, with the reason

A row is done when its part has its name. Bad rows are written before it; where a run is killed between the two, the
next one takes them out again.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from foveate._files import named
from foveate._upstream import brief
from foveate._writing import PART, publish
from foveate.batch.parts import ADVICE, line_of, part_name, range_of, write_part
from foveate.batch.ranges import Ranges, runs_of
from foveate.batch.rows import Answered, Bad, Result
from foveate.errors import InputError

__all__ = ["BAD", "MANIFEST", "Output", "open_output"]

FORMAT = "foveate batch 1"
MANIFEST, BAD, LOCK = "manifest.json", "bad.jsonl", ".lock"
OTHERS = {"input": "another input", "settings": "other settings", "model": "another model or other versions"}


class Output:
    """The folder of a job; made by `open_output`.

    Attributes:
        path: The folder.
        kind: Of its parts: "jsonl" or "parquet".
        manifest: What the job was begun with; None if this is its beginning.
        done: Rows that are done.
        bad: How many of those have no answer.
        parts: How many parts there are.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.manifest = _manifest(path / MANIFEST)
        self.done = Ranges()
        self.bad = self.parts = 0
        if self.manifest is None:
            _refuse_others(path)

    def begin(self, manifest: Mapping[str, Any]) -> None:
        """Write down what the job is begun with.

        Raises:
            InputError: If that cannot be written.
        """
        text = json.dumps({"format": FORMAT, **manifest}, indent=2) + "\n"
        _publish(self.path / MANIFEST, text.encode())
        self.manifest = json.loads(text)

    def check(self, name: str, values: Any) -> None:
        """Refuse to go on with others than the job was begun with.

        Args:
            name: What they are: "input", "settings" or "model".
            values: Plain values.

        Raises:
            InputError: If they differ.
        """
        difference = _difference((self.manifest or {}).get(name), json.loads(json.dumps(values)))
        if difference is not None:
            raise InputError(
                f"{named(self.path)} was begun with {OTHERS[name]}: {difference}. Run it as it was begun, or name "
                "another folder."
            )

    def resume(self, rows: int) -> None:
        """Look which rows are done, and take out what a run that was killed has left.

        Args:
            rows: How many rows the input has.

        Raises:
            InputError: If parts overlap, or name rows that there are not.
        """
        try:
            self._look(rows)
        except OSError as error:
            raise InputError(f"{named(self.path)} cannot be read: {error.strerror}. Check its rights.") from error

    def _look(self, rows: int) -> None:
        ranges = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(PART):
                    os.unlink(entry.path)
                elif (rows_of := range_of(entry.name, self.kind)) is not None:
                    ranges.append(rows_of)
        self.parts = len(ranges)
        self.done = Ranges(ranges)
        wrong = self.done.overlap or next((each for each in ranges if not each[0] <= each[1] < rows), None)
        if wrong is not None:
            name = part_name(*wrong, self.kind)
            raise InputError(f"{named(self.path / name)} does not belong here: remove what was copied into the folder.")
        self._clean_bad()

    def add(self, results: Sequence[Result]) -> None:
        """Keep the results of rows; they are on the disk when this returns.

        Raises:
            InputError: If they cannot be written, as on a full disk.
        """
        ordered = sorted(results, key=lambda result: result.number)
        bad = [result for result in ordered if isinstance(result, Bad)]
        if bad:
            self._append(b"".join(line_of(result.to_dict()) for result in bad))
        for first, last in runs_of(result.number for result in ordered):
            within = [result for result in ordered if first <= result.number <= last]
            answered = [result for result in within if isinstance(result, Answered)]
            write_part(self.path / part_name(first, last, self.kind), answered)
            self.parts += 1
            self.done = Ranges([*self.done, (first, last)])
        self.bad += len(bad)

    def _append(self, lines: bytes) -> None:
        path = self.path / BAD
        try:
            with path.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{named(path)} could not be written: {error.strerror}. {ADVICE}") from error

    def _clean_bad(self) -> None:
        """Count the bad rows, and take out half lines and those of rows that are not done."""
        path = self.path / BAD
        if not path.exists():
            return
        self.bad = total = 0
        with path.open("rb") as file:
            for line in file:
                total += 1
                self.bad += self._is_done(line)
        if self.bad < total:
            publish(path, self._copy_done, force=True, durable=True, advice=ADVICE)

    def _copy_done(self, path: Path) -> None:
        with (self.path / BAD).open("rb") as old, path.open("wb") as new:
            new.writelines(line for line in old if self._is_done(line))

    def _is_done(self, line: bytes) -> bool:
        """Whether a line is whole, and its row done."""
        if not line.endswith(b"\n"):
            return False
        with suppress(ValueError, TypeError, KeyError):
            return json.loads(line)["row"] in self.done
        return False


@contextmanager
def open_output(path: Path, kind: str) -> Iterator[Output]:
    """The folder of a job; while the context lasts, no other run uses it.

    Args:
        path: Created if it is missing.
        kind: Of its parts: "jsonl" or "parquet".

    Raises:
        InputError: If another run uses it, it cannot be used, or holds something else.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(
            f"{named(path)} is in use by {_holder(path / LOCK)}. Wait until that run has ended, or name another folder."
        ) from error
    except OSError as error:
        raise InputError(f"{named(path)} cannot be used: {error.strerror}. Name another folder.") from error
    try:
        with suppress(OSError):
            Path(lock.lock_file).write_text(f"{os.getpid()}\n")  # only for the sentence above
        yield Output(path, kind)
    finally:
        lock.release()


def _holder(lock: Path) -> str:
    with suppress(OSError, ValueError):
        return f"another run, process {int(lock.read_text())}"
    return "another run"


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{named(path)} cannot be read: {error.strerror}. Name another folder.") from error
    with suppress(ValueError, RecursionError):
        manifest = json.loads(text)
        if isinstance(manifest, dict) and manifest.get("format") == FORMAT and isinstance(manifest.get("rows"), int):
            return manifest
    raise InputError(f"{named(path)} is damaged, or of another version of foveate. Name another folder.")


def _refuse_others(path: Path) -> None:
    """Refuse a folder that holds something, where no job was begun."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name != LOCK and not entry.name.startswith(PART):
                raise InputError(
                    f"{named(path)} holds {brief(entry.name)}, and is the folder of no job. Name an empty folder, or a "
                    "new one."
                )


def _publish(path: Path, content: bytes) -> None:
    publish(path, lambda part: part.write_bytes(content), force=True, durable=True, advice=ADVICE)


def _difference(before: Any, now: Any, place: str = "") -> str | None:
    """The first value that differs, in words; None where all are the same."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            difference = _difference(before.get(key), now.get(key), f"{place} {key}".strip())
            if difference is not None:
                return difference
        return None
    if before == now:
        return None
    return f"{place} was {brief(before, 60)}, and is {brief(now, 60)}"
