"""Files that are written whole or not at all. Nothing here may import torch."""

import errno
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from foveate.errors import InputError

PART = ".foveate-"
"""How files begin that are not finished."""
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)  # what file systems without hard links say


def encodable(value: Any) -> Any:
    """A value as JSON, CSV and Parquet hold it, for every reader.

    Letters that are none of UTF-8, as in the name of an old file, are escaped with a backslash; what is no finite
    number is None; a whole number beyond 64 bits is a text.
    """
    if isinstance(value, Mapping):
        names = (encodable(name).replace("\0", "\\0") if isinstance(name, str) else name for name in value)
        return dict(zip(names, map(encodable, value.values()), strict=True))
    if isinstance(value, list | tuple):
        return [encodable(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if type(value) is int and abs(value) >= 2**63:
        return str(value)
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return value.encode(errors="backslashreplace").decode()
    return value


def publish(
    path: Path,
    write: Callable[[Path], object],
    *,
    force: bool,
    durable: bool = False,
    advice: str = "Make room, or name another file.",
) -> Path:
    """Write a file under another name, then give it its own; where it is.

    Args:
        path: Where to. If there is a file and `force` is off, it gets the name `NAME-2` beside it.
        write: Writes the file at the path that it is given.
        force: Whether to overwrite a file.
        durable: Whether it is on the disk when this returns, also where the power fails.
        advice: What to do where it cannot be written, as a sentence.

    Raises:
        InputError: If it cannot be written; nothing is left then.
    """
    part = None
    try:
        target = path.resolve()  # a link stays one
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=PART)
        os.close(handle)
        part = Path(name)
        write(part)
        mask = os.umask(0)
        os.umask(mask)
        part.chmod(0o666 & ~mask)  # mkstemp makes files that only their owner can read
        if durable:
            _sync(part)
        if not force:  # `result.json`, then `result-2.json`, `result-3.json` and so on
            others = (target.with_name(f"{target.stem}-{number}{target.suffix}") for number in count(2))
            return next(other for other in chain([target], others) if _claim(part, other))
        part.replace(target)
        if durable:
            _sync(target.parent)
        return target
    except (OSError, RuntimeError, ValueError) as error:  # of Pillow on what a format cannot hold, a ValueError
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path} could not be written: {why}. {advice}") from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _claim(part: Path, target: Path) -> bool:
    """Give a finished file its name; False where there is such a file."""
    try:
        try:
            os.link(part, target)
        except OSError as error:
            if error.errno not in WITHOUT_LINKS:
                raise
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # an empty file takes the name
            part.replace(target)
    except FileExistsError:
        return False
    return True


def preset_files(asked: Iterable[tuple[str, Mapping[str, float]]]) -> list[str]:
    """The names of preset files, METHOD-BUDGET.json; what is no letter, digit or `._+=,` becomes a hyphen."""
    names: list[str] = []
    for method, budget in asked:
        ((kind, value),) = budget.items()
        if kind in ("tokens", "retention"):
            size = f"{value:.6g}"
        else:
            size = f"{kind}-{value:.6g}"
        stem = re.sub(r"[^\w.+=,]+", "-", method.removesuffix(".json"))[:80].strip("-.")
        name, number = f"{stem}-{size}.json", 2
        while name.lower() in map(str.lower, names):
            name, number = f"{stem}-{size}-{number}.json", number + 1
        names.append(name)
    return names
