"""The files a command line names: pictures and videos."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from foveate.cli.options import VideoOptions
from foveate.cli.pictures import Picture, load_picture
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.errors import SettingError
from foveate.video import Clip, read

__all__ = ["as_seen", "is_video", "load_media"]

VIDEOS = {
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".wmv", ".flv", ".f4v",
    ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".asf", ".h264", ".h265", ".hevc", ".y4m",
}  # fmt: skip
FEW = 3  # frames of a clip on a model that reads pictures, where nothing is said: each has a whole picture's tokens


def is_video(path: Path) -> bool:
    """Whether a file's ending says that it is a video."""
    return path.suffix.lower() in VIDEOS


def load_media(paths: Sequence[Path], options: VideoOptions) -> list[Picture | Clip]:
    """Read pictures and videos, with a note on stderr where something is odd; a GIF is a video if frames are asked for.

    Raises:
        InputError: If a file cannot be read.
        UsageError: If flags for videos leave their range or no file is one.
        UnsupportedError: If there is a video and no PyAV.
    """
    asked = options.frames is not None or options.fps is not None
    films = [is_video(path) or (asked and path.suffix.lower() == ".gif") for path in paths]
    if asked and not any(films):
        raise UsageError(
            "--frames and --fps are for videos, and no file named is one: "
            "their names end in .mp4, .mkv, .webm or the like."
        )
    media: list[Picture | Clip] = []
    for path, film in zip(paths, films, strict=True):
        if film:
            media.append(_clip(path, options))
        else:
            media.append(load_picture(path))
        if told := media[-1].note:
            note(told)
    return media


def _clip(path: Path, options: VideoOptions) -> Clip:
    try:
        with busy(f"Reading {path.name}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told as a note
            return read(path, frames=options.frames, fps=options.fps)
    except SettingError as error:
        raise UsageError(f"--frames and --fps: {error}") from error


def as_seen(media: Sequence[Picture | Clip], options: VideoOptions, reads_videos: bool) -> list[Picture | Clip]:
    """The media as the model will see them: where it reads no videos, a few of a clip's frames, and a note says so."""
    if reads_videos:
        return list(media)
    seen: list[Picture | Clip] = []
    for one in media:
        if isinstance(one, Clip):
            read = len(one)
            one = one.thinned(FEW) if options.frames is None and options.fps is None else one
            if read == 1:
                what = f"the one frame of {one.path} goes in as a picture"
            elif len(one) == read:
                what = f"the {read} frames of {one.path} go in as pictures"
            else:
                what = f"of the {read} frames read of {one.path}, {len(one)} go in as pictures"
            note(f"this model reads no videos: {what}.")
        seen.append(one)
    return seen
