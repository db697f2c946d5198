"""Checks of paths and files. Nothing here may import torch or NumPy: commands check files before loading those."""

import hashlib
import os
import re
import stat
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from foveate.errors import InputError
from foveate.plain.upstream import trim

BASE64 = re.compile(
    r"(iVBORw0KGgo|/9j/|R0lGOD|UklGR|Qk[0-3]|SUkqA|TU0AK|AAAA..Z0eX|GkXfo)[A-Za-z0-9+/\s]{32,}={0,2}\s*", re.DOTALL
)
"""Matches a file in base64, by the first bytes of PNG, JPEG, GIF, WebP, BMP, TIFF, AVIF and MP4, and Matroska."""
URL = re.compile(r"\s*([a-z][a-z0-9+.-]+):(//)?", re.IGNORECASE)
SCHEMES = {"blob", "cid", "data", "file", "ftp", "gs", "hf", "http", "https", "s3"}
"""URL schemes recognised without the two slashes. Others need them: a file may be called "12:30.jpg"."""
LONG = 1000
"""Longest path, in characters. A longer text may be a file in base64."""

FRESH = 2.0
"""Coarsest file time stamp, in seconds. A file may be written twice in this time and keep its time stamp."""

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".f4v",
    ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".asf", ".h264", ".h265", ".hevc", ".y4m", ".qt", ".divx", ".xvid", ".gifv",
    ".mpe", ".m1v", ".m2v", ".rm", ".rmvb", ".dv", ".ogm",
}  # fmt: skip

HEAD = 30
"""First bytes of a WebP file, which tell its size and whether it is animated."""

# O_NONBLOCK: opening a pipe without a writer would block forever. Windows has neither of the first two flags.
OPENED = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def is_video(path: Path, frames_asked: bool = False) -> bool:
    """True if a file name ends like a video. With `frames_asked`, a GIF or an animated WebP is a video too."""
    suffix = path.suffix.lower()
    if frames_asked and suffix == ".webp" and path.is_file():
        with path.open("rb") as file:
            return is_animated(file.read(HEAD))
    return suffix in VIDEOS or (frames_asked and suffix == ".gif")


def is_animated(head: bytes) -> bool:
    """True if the first `HEAD` bytes of a file are those of an animated WebP."""
    return len(head) == HEAD and head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20] & 2)


def spell(path: Path) -> str:
    """Return a path as one printable line, whatever bytes are in its name."""
    return trim(str(path), most=1000)


def scheme_of(source: str) -> str | None:
    """Return the scheme of a URL in lower case; None for a path."""
    match = URL.match(source)
    if match is None:
        return None
    scheme = match[1].lower()
    if not match[2] and scheme not in SCHEMES:
        return None
    return scheme


def local_path(source: str | Path) -> Path:
    """Return the local path that a path or a `file:` URL names. A `Path` that exists is itself, however it looks.

    Raises:
        InputError: If it is another kind of URL, or names another machine. The message never contains file data.
    """
    if isinstance(source, Path):
        if os.path.exists(source):
            return source
        source = str(source)
    scheme = scheme_of(source)
    if not source:
        raise InputError("A path is empty. Name a file.")
    if scheme is None:
        if len(source) > LONG and not os.path.exists(source):
            raise InputError(
                f"A text of {len(source):,} letters is not a path. Write a file in base64 as "
                "data:image/png;base64,… with the right type."
            )
        return Path(source)
    if scheme in ("http", "https"):
        raise InputError(f"Nothing is downloaded automatically. Download {trim(source)} first, and name the file.")
    if scheme == "data":
        raise InputError("A data: URL is not read here. Save its content to a file, and name that.")
    if scheme != "file":
        raise InputError(f"A {scheme}: URL is not read: {trim(source)}. Download the file first, and name that.")
    rest = source.strip().partition(":")[2]
    host = ""
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        rest = slash + path
    if host.lower() not in ("", "localhost") or not rest.startswith("/"):
        raise InputError(
            f"A file: URL must name a file on this machine by its full path, as in file:///home/me/cat.jpg; "
            f"got {trim(source)}. Write it like that, or give the path alone."
        )
    return Path(os.fsdecode(unquote_to_bytes(os.fsencode(rest))))


def check_readable(path: Path) -> None:
    """Refuse a picture or video that does not exist, is not a file, or is empty. Opens nothing.

    Raises:
        InputError: If the file cannot be used.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        raise InputError(_unreadable(path, error)) from error
    _check(path, status)


def open_readable(path: Path) -> BinaryIO:
    """Open a file for reading, and refuse what `check_readable` refuses.

    The opened file itself is checked, so it cannot be replaced by a pipe in between.

    Raises:
        InputError: If the file cannot be opened or used.
    """
    try:
        number = os.open(path, OPENED)
    except (OSError, ValueError) as error:
        check_readable(path)  # names a socket as such, instead of the error of opening it
        raise InputError(_unreadable(path, error)) from error
    try:
        _check(path, os.fstat(number))
    except InputError:
        os.close(number)
        raise
    return os.fdopen(number, "rb")


def sha256_of(source: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a `data:` URL.

    Raises:
        InputError: If the file cannot be read.
    """
    if isinstance(source, str) and scheme_of(source) == "data":
        return hashlib.sha256(source.encode()).hexdigest()
    with open_readable(Path(source)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader


def state_of(source: str | Path) -> object:
    """Return a value that changes when the content behind a path or URL changes.

    It consists of the size, times and inode, or of the SHA-256 for a file written in the last seconds.

    Raises:
        InputError: If the file cannot be read.
    """
    if isinstance(source, str) and scheme_of(source) == "data":
        return None  # the URL is the content
    path = local_path(source)
    check_readable(path)
    status = path.stat()
    if abs(time.time() - status.st_ctime) < FRESH:
        return sha256_of(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _check(path: Path, found: os.stat_result) -> None:
    """Refuse what is not a file, and empty files."""
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{spell(path)} is a folder, not a picture or video. Name the files in it.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{spell(path)} is a pipe, socket or device, not a file. Save its content to a file first.")
    if found.st_size == 0:
        raise InputError(f"{spell(path)} is empty (0 bytes). Fetch or export it again.")


def _unreadable(path: Path, error: OSError | ValueError) -> str:
    """Explain why a file cannot be read. The error is a ValueError for a name with a NUL character."""
    why = getattr(error, "strerror", None) or str(error)
    return f"{spell(path)} cannot be read: {why}. Check the path and its permissions."
