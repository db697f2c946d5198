"""Atomic writing of files. Nothing here may import torch."""

import errno
import math
import os
import secrets
from collections.abc import Callable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from foveate.errors import InputError

PART = ".foveate-"
"""Prefix of the names of unfinished files."""
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # errors of file systems without hard links


def encodable(value: Any) -> Any:
    """Convert a value to one that JSON, CSV and Parquet can hold.

    Characters that UTF-8 cannot encode, as in old file names, are escaped with a backslash. NaN and infinity become
    None, and an integer beyond 64 bits becomes a string.
    """
    # Texts and numbers come first, because rows of a batch are full of them.
    if isinstance(value, str):
        if value.isascii() or value == (escaped := value.encode(errors="backslashreplace").decode()):
            return value  # the text itself: a `Number` of a table has more than its letters
        return escaped
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if type(value) is int:
        return value if abs(value) < 2**63 else str(value)
    if isinstance(value, list | tuple):
        return [encodable(part) for part in value]
    if isinstance(value, Mapping):
        names = (encodable(name).replace("\0", "\\0") if isinstance(name, str) else name for name in value)
        return dict(zip(names, map(encodable, value.values()), strict=True))
    return value


def publish(
    path: Path,
    write: Callable[[Path], object],
    *,
    force: bool,
    durable: bool = False,
    advice: str = "Free some space, or name another file.",
) -> Path:
    """Write a file under a temporary name, then rename it.

    Args:
        path: The target. If it exists and `force` is False, the file is named `NAME-2` instead.
        write: Called with the temporary path; writes the file there.
        force: Overwrite an existing file.
        durable: Sync the file to the disk before returning, so that it survives a power failure.
        advice: What to do if the file cannot be written, as a sentence for the error.

    Returns:
        The path of the file.

    Raises:
        InputError: If the file cannot be written. No partial file is left.
    """
    part = None
    try:
        target = path.resolve()  # write to the target of a link, and keep the link
        part = target.parent / f"{PART}{secrets.token_hex(8)}"
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # tempfile's only their owner can read
        write(part)
        if durable:
            _sync(part)
        if not force:  # `result.json`, then `result-2.json`, `result-3.json` and so on
            others = (target.with_name(f"{target.stem}-{number}{target.suffix}") for number in count(2))
            return next(other for other in chain([target], others) if _claim(part, other))
        part.replace(target)
        if durable:
            _sync(target.parent)
        return target
    except (OSError, RuntimeError, ValueError) as error:  # Pillow's ValueError: a format cannot hold the image
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} could not be written: {why}. {advice}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Sync a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _claim(part: Path, target: Path) -> bool:
    """Give a finished file its name. Return False if the name exists already."""
    try:
        try:
            os.link(part, target)
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # reserve the name with an empty file
            part.replace(target)
    except FileExistsError:
        return False
    return True
