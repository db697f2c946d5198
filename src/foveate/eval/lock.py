"""One run at a time uses a store: a lock of the operating system, which ends with its process, however that ends."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from foveate.errors import InputError

__all__ = ["PATIENCE", "locked"]

PATIENCE = 5.0
"""Seconds to wait for another run before refusing."""
UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def locked(path: Path, note: Callable[[str], object]) -> Iterator[None]:
    """Keep other runs off a file while the context lasts; the lock is the file of the same name with `.lock`.

    Args:
        path: What is locked. Where it cannot be written, there is nothing to lock.
        note: Hears that it waits.

    Raises:
        InputError: If another run still uses it then, or the lock cannot be made.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, path, note)
    except OSError as error:
        if error.errno not in UNWRITABLE or not path.is_file() or os.access(path, os.W_OK):
            raise InputError(f"{path} cannot be used: {error.strerror or error}. Name another folder.") from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: FileLock, path: Path, note: Callable[[str], object]) -> None:
    own = Path(lock.lock_file)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            note(f"{path} is in use by {_holder(own)}; waiting up to {PATIENCE:g} s")
            lock.acquire(timeout=PATIENCE, poll_interval=0.1)
    except Timeout as error:
        raise InputError(
            f"{path} is in use by {_holder(own)}. Wait until that run has ended, or name another folder (--cache, "
            "in lmms-eval log=)."
        ) from error
    with suppress(OSError, ValueError):  # only for the sentence above; Windows lets nobody write here
        if not (text := own.read_text()) or text.strip().isdigit():
            own.write_text(f"{os.getpid()}\n")


def _holder(lock: Path) -> str:
    """Who holds a lock, in words."""
    with suppress(OSError, ValueError):
        return f"another run, process {int(lock.read_text())}"
    return "another run"
