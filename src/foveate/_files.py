"""What files show from outside. Nothing here may import torch or NumPy: commands look before those are loaded."""

from pathlib import Path

from foveate.errors import InputError

__all__ = ["check_readable", "is_video"]

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".f4v",
    ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".asf", ".h264", ".h265", ".hevc", ".y4m",
}  # fmt: skip


def is_video(path: Path, frames_asked: bool = False) -> bool:
    """Whether a file's ending says that it is a video; a GIF is one where frames are asked for."""
    suffix = path.suffix.lower()
    return suffix in VIDEOS or (frames_asked and suffix == ".gif")


def check_readable(path: Path) -> None:
    """Refuse a picture or video that is not there, is no file, or has no bytes.

    Raises:
        InputError: If that is so.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file. Name the files in it.")
    if not path.is_file():  # reading a pipe may never end
        raise InputError(f"{path} is a device or a pipe, not a file. Save what it gives to a file first.")
    if size == 0:
        raise InputError(f"{path} is empty (0 bytes). Fetch or export it again.")
