"""What a command refuses before torch is imported: names and paths that there are not. Nothing here may import torch.

Whatever else is wrong, such as a setting or a budget, the library refuses.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from foveate import embedded
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain import inventory
from foveate.plain.files import check_readable, is_video
from foveate.plain.flags import EMBEDDED, MediaOptions
from foveate.plain.folders import folder_of
from foveate.plain.spelling import unknown, written
from foveate.plain.upstream import trim

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Of the pictures of a folder."""


def check_input(files: Sequence[Path], prompt: str | Sequence[str], model: str, media: MediaOptions) -> None:
    """Refuse a question that cannot be asked.

    Raises:
        UsageError: If a file or the prompt is missing, or there are frames to choose and no video.
        InputError: If a file cannot be read, or there is no such model.
    """
    if not files and model != EMBEDDED:
        raise UsageError("Which picture? Name image or video files; only the embedded model brings one of its own.")
    if files and not prompt:
        raise UsageError('What is the question? Give it with --prompt "…".')
    frames_asked = media.frames is not None or media.fps is not None
    if frames_asked and not any(is_video(path, frames_asked=True) for path in files):
        raise UsageError("--frames and --fps are for videos, and no file has the ending of one (.mp4, .mkv, .webm …).")
    for path in files:
        check_readable(path)
    check_model(model)


def check_model(name: str) -> None:
    """Refuse a name that is neither a folder nor a hub id.

    Raises:
        InputError: If that is so.
    """
    if name in embedded.NAMES or folder_of(name) is not None or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return
    raise InputError(
        f"Model '{trim(name)}' is no folder here, and no hub id: that is written OWNER/NAME. Families: foveate models."
    )


def files_in(place: Path, films: bool = False) -> list[Path]:
    """A file; or the pictures of a folder by name, with its films where these count.

    Raises:
        InputError: If a folder has none.
    """
    if not os.path.isdir(place):  # unlike Path.is_dir, no error where the name is too long
        return [place]
    paths = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS or (films and is_video(path)))
    if not paths:
        raise InputError(f"{place} has no picture in it ({', '.join(ENDINGS)}).")
    return paths


def own_files(names: Sequence[str]) -> list[str]:
    """The Python files among methods."""
    return [part.name for name in names for part in written(name) if part.is_code]


def check_methods(names: Sequence[str]) -> None:
    """Refuse methods and method files that there are not. Presets and settings are left to the library.

    Raises:
        InputError: If a file cannot be read.
        SettingError: If a text names no method.
        UnknownNameError: If there is no method of a name.
    """
    for part in (part for name in names for part in written(name)):
        if part.is_file or part.is_code:
            check_readable(Path(part.name).expanduser())
        elif part.is_preset or part.name in inventory.method_classes():
            continue
        elif part.name not in (there := inventory.methods()):
            raise unknown("method", part.name, there, "foveate methods")
