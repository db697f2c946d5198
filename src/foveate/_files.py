"""What files show from outside. Nothing here may import torch or NumPy: commands look before those are loaded."""

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from foveate._upstream import shown
from foveate.errors import InputError

__all__ = ["check_readable", "is_video", "named", "open_readable", "sha256_of"]

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".f4v",
    ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".asf", ".h264", ".h265", ".hevc", ".y4m",
}  # fmt: skip

OTHERS = {
    stat.S_IFDIR: "a folder, not a picture or video. Name the files in it.",
    stat.S_IFIFO: "a pipe (FIFO), not a file. Save what comes out of it to a file first.",
    stat.S_IFSOCK: "a socket, not a file. Name a picture or video.",
    stat.S_IFCHR: "a device, not a file. Name a picture or video.",
    stat.S_IFBLK: "a device, not a file. Name a picture or video.",
}
"""What is no file, by its type in `st_mode`, and what to do."""

# Opening a pipe that nobody writes to would wait for ever. Windows has neither flag.
OPENED = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def is_video(path: Path, frames_asked: bool = False) -> bool:
    """Whether a file's ending says that it is a video; a GIF is one where frames are asked for."""
    suffix = path.suffix.lower()
    return suffix in VIDEOS or (frames_asked and suffix == ".gif")


def named(path: Path) -> str:
    """A path as one line can say it, whatever bytes are in its name."""
    return shown(str(path), most=1000)


def check_readable(path: Path) -> None:
    """Refuse a picture or video that is not there, is no file, or has no bytes. Nothing is opened.

    Raises:
        InputError: If that is so.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(path, error)) from error
    _check(path, found)


def open_readable(path: Path) -> BinaryIO:
    """The same, and open it for reading.

    What is looked at is what was opened: nobody can put a pipe in its place between the two.

    Raises:
        InputError: If it cannot be opened, or is none that can be read.
    """
    try:
        number = os.open(path, OPENED)
    except (OSError, ValueError) as error:
        check_readable(path)  # a socket is refused for what it is, not for how opening it fails
        raise InputError(_unreadable(path, error)) from error
    try:
        _check(path, os.fstat(number))
    except InputError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Raises:
        InputError: If it cannot be read.
    """
    with open_readable(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader


def _check(path: Path, found: os.stat_result) -> None:
    """Refuse what is no file, or empty."""
    kind = stat.S_IFMT(found.st_mode)
    if kind in OTHERS:
        raise InputError(f"{named(path)} is {OTHERS[kind]}")
    if found.st_size == 0:
        raise InputError(f"{named(path)} is empty (0 bytes). Fetch or export it again.")


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    """Why a file cannot be looked at; a name with a NUL in it raises ValueError."""
    advice = "Check the path."
    if isinstance(error, PermissionError):
        advice = "Check its rights."
    why = getattr(error, "strerror", None) or str(error)
    return f"{named(path)} cannot be read: {why}. {advice}"
