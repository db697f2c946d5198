"""What has been answered, on disk: an interrupted run goes on, a second one reuses it."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.methods.base import Method

__all__ = ["FULL", "Store", "fingerprint", "home", "key_of", "open_store"]

FORMAT = "foveate eval 1"

FULL = "full"
"""The name under which the full model's answers are kept."""


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

    Args:
        folder: Created if it is missing.
        conditions: All that an answer depends on but for question and method; they name the file.

    Raises:
        InputError: If the folder or the file cannot be used.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        self.path = folder / f"{fingerprint(conditions)}.jsonl"
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._read()
            else:
                self._append([{"format": FORMAT, "conditions": dict(conditions)}])
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
            self._append(rows)
        except OSError as error:
            raise InputError(
                f"{self.path} could not be written: {error.strerror}. Make room and run again: nothing is lost."
            ) from error
        for row in rows:
            self._rows[row["method"], row["question"]] = row

    def __len__(self) -> int:
        return len(self._rows)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
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
        for line in self.path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                self._rows[row["method"], row["question"]] = row
            except (ValueError, KeyError, TypeError):
                continue  # the heading, or a line that was never finished


def open_store(conditions: Mapping[str, Any], folder: str | Path | None = None, *, fresh: bool = False) -> Store:
    """The store of these conditions.

    Args:
        conditions: See `Store`.
        folder: Where it lies; None is `home()`.
        fresh: Whether to leave earlier answers aside: a new file beside the old one.
    """
    stamp = {"fresh": datetime.now(UTC).isoformat()} if fresh else {}
    return Store(Path(folder or home()).expanduser(), {**conditions, **stamp})
