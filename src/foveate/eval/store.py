"""What has been answered, on disk: an interrupted run goes on, a second one reuses it."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.eval.lock import locked
from foveate.eval.rows import CHECKSUM, FULL, Damaged, line_of, row_of

__all__ = ["FULL", "Store", "fingerprint", "home", "key_of", "open_store"]

FORMAT = "foveate eval 2"
"""What a new file says it is. Rows of version 1 have no checksum, and can still be read."""


def home() -> Path:
    """Where answers are kept by default: `foveate/eval` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate" / "eval"


def fingerprint(values: Mapping[str, Any]) -> str:
    """A short name for plain values: equal values, equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def key_of(method: Method | None) -> str:
    """The name under which a method's answers are kept; None is the full model."""
    if method is None:
        return FULL
    return f"{method.name} {fingerprint(method.to_dict())}"


class Store:
    """Records of one model under one set of conditions: a JSON object a line, only ever appended to.

    Each line has a checksum. A line that is damaged is left out, so that its question is asked again.

    Args:
        folder: Created if it is missing.
        conditions: All that an answer depends on but for question and method; they name the file.

    Attributes:
        path: The file.
        damaged: How many lines of it are damaged.

    Raises:
        InputError: If the folder or the file cannot be used.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        self.path = _path(folder, conditions)
        self.damaged = 0
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._read()
            else:
                self._append(json.dumps({"format": FORMAT, "conditions": dict(conditions)}) + "\n")
        except OSError as error:
            raise InputError(f"{self.path} cannot be used: {error.strerror}. Name another folder.") from error

    def get(self, method: str, question: str) -> dict[str, Any] | None:
        """The record of a method's answer to a question; None where there is none."""
        return self._rows.get((method, question))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records, each with its "method" and "question"; they are on disk when this returns.

        Raises:
            InputError: If they cannot be written, as on a full disk.
        """
        rows = [dict(record) for record in records]
        try:
            self._append("".join(map(line_of, rows)))
        except OSError as error:
            raise InputError(
                f"{self.path} could not be written: {error.strerror}. Make room and run again: nothing is lost."
            ) from error
        for row in rows:
            self._rows[row["method"], row["question"]] = row

    def __len__(self) -> int:
        return len(self._rows)

    def _append(self, text: str) -> None:
        with self.path.open("ab") as file:  # one write a call: two runs at once do not mix their lines
            if file.tell() and not self._ends_with_a_line():
                text = "\n" + text  # a run was killed, or the disk was full, in the middle of a line
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())

    def _ends_with_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _read(self) -> None:
        old = True  # rows of version 1 come first in a file that has both
        for line in self.path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            old = old and not _is_new(line)
            if _is_heading(line):
                continue
            try:
                row = row_of(line, unchecked=old)
            except Damaged:
                self.damaged += 1
                continue
            self._rows[row["method"], row["question"]] = row


def _path(folder: Path, conditions: Mapping[str, Any]) -> Path:
    return folder / f"{fingerprint(conditions)}.jsonl"


def _is_heading(line: bytes) -> bool:
    return line.startswith(b'{"format":')


def _is_new(line: bytes) -> bool:
    """Whether a line says that it or the file is of version 2, where every row has a checksum."""
    return f'"{CHECKSUM}":'.encode() in line or line.startswith(f'{{"format": "{FORMAT}"'.encode())


@contextmanager
def open_store(
    conditions: Mapping[str, Any],
    folder: str | Path | None = None,
    *,
    fresh: bool = False,
    note: Callable[[str], object] = str,
) -> Iterator[Store]:
    """The store of these conditions; while the context lasts, no other run uses it.

    Args:
        conditions: See `Store`.
        folder: Where it lies; None is `home()`.
        fresh: Whether to leave earlier answers aside: a new file beside the old one.
        note: Hears that another run is waited for, and that lines are damaged.

    Raises:
        InputError: If another run uses it, or it cannot be used.
    """
    stamp = {"fresh": datetime.now(UTC).isoformat()} if fresh else {}
    place, stamped = Path(folder or home()).expanduser(), {**conditions, **stamp}
    with locked(_path(place, stamped), note):
        store = Store(place, stamped)
        if store.damaged:
            lines = "line is" if store.damaged == 1 else "lines are"
            note(f"{store.damaged} {lines} damaged in {store.path} and left out; what is missing is asked again")
        yield store
