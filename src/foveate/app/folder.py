"""The folder in which uploads and results lie: bounded, the oldest go first."""

import secrets
import time
from pathlib import Path
from typing import Any

__all__ = ["Folder"]

SHORTEST = 60.0
"""Seconds that a file stays at least, so that nobody's upload goes while it is read."""


class Folder:
    """Files of the page.

    Args:
        path: A folder that is there; nothing else is ever touched.
        most: Bytes that all files together may take.

    Attributes:
        spared: Files that never go, such as the examples' pictures.
    """

    def __init__(self, path: Path, most: int) -> None:
        self.path = path
        self.most = most
        self.spared: frozenset[Path] = frozenset()

    def spare(self) -> None:
        """Let everything stay that is there now."""
        self.spared = frozenset(path for path in self.path.rglob("*") if path.is_file())

    def owns(self, path: Any) -> bool:
        """Whether a text names a file in here, wherever its dots and links lead."""
        if not isinstance(path, str) or "\0" in path:
            return False
        return Path(path).is_absolute() and Path(path).resolve().is_relative_to(self.path.resolve())

    def has_room(self, size: int) -> bool:
        """Whether so many bytes fit, once the oldest files are removed; those of the last minute stay."""
        files = []
        for path in self.path.rglob("*"):
            if path in self.spared or path.is_dir():
                continue
            try:
                found = path.lstat()
            except OSError:  # another request has removed it
                continue
            files.append((found.st_mtime, found.st_size, path))
        total = size + sum(one for _, one, _ in files)
        for changed, one, path in sorted(files):
            if total <= self.most or time.time() - changed < SHORTEST:
                break
            path.unlink(missing_ok=True)
            total -= one
        return total <= self.most

    def new(self, name: str) -> Path:
        """A place for a file of this name, in a folder that nobody can guess."""
        folder = self.path / secrets.token_hex(16)
        folder.mkdir()
        return folder / name
