"""Checks that run before torch is imported: names and paths that do not exist. Nothing here may import torch.

The library refuses everything else, such as wrong settings and budgets.
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
from foveate.plain.spelling import parse_text, unknown
from foveate.plain.upstream import trim

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Endings of the files that count as images of a folder."""


def check_files(files: Sequence[Path], *, together: bool) -> None:
    """Refuse files before anything slow: if one cannot be read, or, where the others do without it, if none can.

    Raises:
        InputError: Of the first that cannot be read.
    """
    failures = []
    for path in files:
        try:
            check_readable(path)
        except InputError as error:
            failures.append(error)
    if failures and (together or len(failures) == len(files)):
        raise failures[0]


def check_input(
    files: Sequence[Path], prompt: str | Sequence[str], model: str, media: MediaOptions, *, together: bool = True
) -> None:
    """Refuse files, a prompt, a model or flags with which no question can be asked.

    Args:
        files: The files.
        prompt: The question or questions.
        model: The model's name.
        media: The options for media.
        together: Whether a file that cannot be read is refused. If not, the others do without it.

    Raises:
        UsageError: If a file or the prompt is missing, or frames are requested and no file is a video.
        InputError: If a file cannot be read, or there is no such model.
    """
    if not files and model != EMBEDDED:
        raise UsageError("The image is missing. Name image or video files; only the embedded model comes with one.")
    if files and not prompt:
        raise UsageError('The question is missing. Give it with --prompt "…".')
    frames_asked = media.frames is not None or media.fps is not None
    if frames_asked and not any(is_video(path, frames_asked=True) for path in files):
        raise UsageError("--frames and --fps need a video, and no file name ends like one (.mp4, .mkv, .webm …).")
    check_files(files, together=together)
    check_model(model)


def check_model(name: str) -> None:
    """Refuse a model name that is neither a local folder nor a hub id.

    Raises:
        InputError: If it is neither.
    """
    if name in embedded.NAMES or folder_of(name) is not None or re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return
    raise InputError(
        f"Model '{trim(name)}' is neither a local folder nor a hub id, which is written OWNER/NAME. "
        "Families: foveate models."
    )


def files_in(place: Path, films: bool = False) -> list[Path]:
    """Return the images of a folder, sorted by name, or the file itself. `films` includes videos.

    Raises:
        InputError: If a folder has none.
    """
    if not os.path.isdir(place):  # unlike Path.is_dir, raises no error if the name is too long
        return [place]
    paths = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS or (films and is_video(path)))
    if not paths:
        raise InputError(f"{place} has no images ({', '.join(ENDINGS)}).")
    return paths


def own_files(names: Sequence[str]) -> list[str]:
    """Return the Python files among the methods named."""
    return [part.name for name in names for part in parse_text(name) if part.is_code]


def check_methods(names: Sequence[str]) -> None:
    """Refuse methods and method files that do not exist. The library checks presets and settings later.

    Raises:
        InputError: If a file cannot be read.
        SettingError: If a text does not name a method.
        UnknownNameError: If there is no method with that name.
    """
    for part in (part for name in names for part in parse_text(name)):
        if part.is_file or part.is_code:
            check_readable(Path(part.name).expanduser())
        elif part.is_preset or part.name in inventory.method_classes():
            continue
        elif part.name not in (there := inventory.methods()):
            raise unknown("method", part.name, there, "foveate methods")
