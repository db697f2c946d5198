"""What may be shown to the page: how large a file, how many pixels and frames; and what is said of a bad one."""

import dataclasses
import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from foveate._files import check_readable, is_video, named
from foveate._upstream import shown
from foveate.app.subject import Subject
from foveate.ask.media import read_media
from foveate.ask.pictures import Picture
from foveate.errors import FoveateError, InputError
from foveate.video import Clip

__all__ = ["LIMITS", "Limits", "opened"]

MEGABYTE = 10**6
PREPARED = """from pathlib import Path
from foveate.ask.pictures import load_picture
picture = load_picture(Path({name})).image
picture.thumbnail(({side}, {side}))"""
FILM = """from foveate.video import read
picture = read({name}, frames={frames})"""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that the page takes.

    Attributes:
        file: Bytes of an uploaded file.
        folder: Bytes of all uploads and results together, until old ones are removed.
        pixels: Of a picture, as its file holds it.
        side: Longest side of what the model sees, in pixels; larger pictures are scaled down, and that is said.
        frames: Of a film.
        question: Letters of a question.
        methods: How many are compared at a time.
        pictures: Of a heat map.
        waiting: Questions that may wait for the model.
    """

    file: int = 50 * MEGABYTE
    folder: int = 1000 * MEGABYTE
    pixels: int = 50_000_000
    side: int = 1344
    frames: int = 8
    question: int = 1000
    methods: int = 5
    pictures: int = 32
    waiting: int = 20


LIMITS = Limits()


def opened(path: Path, limits: Limits = LIMITS) -> Subject:
    """An uploaded picture or film, ready to be asked about.

    Args:
        path: Where the upload lies; only its last part is ever shown.
        limits: How much is taken.

    Raises:
        InputError: If it is too large, damaged, or neither picture nor film.
        UnsupportedError: If it is a film and PyAV is missing.
    """
    try:
        return _opened(path, limits)
    except FoveateError as error:
        raise type(error)(_without_folder(str(error), path)) from error


def _opened(path: Path, limits: Limits) -> Subject:
    check_readable(path)
    size = path.stat().st_size
    if size > limits.file:
        raise InputError(
            f"{path.name} has {size / MEGABYTE:.0f} MB, and the page takes {limits.file / MEGABYTE:.0f} MB at most. "
            "Scale it down, or cut the film."
        )
    if is_video(path):
        return _film(path, limits)
    return _picture(path, limits)


def _picture(path: Path, limits: Limits) -> Subject:
    _check_pixels(path, limits)
    (picture,) = read_media(path)
    assert isinstance(picture, Picture)
    notes = [picture.note] if picture.note else []
    source = f"picture = {path.name!r}"
    if max(picture.image.size) > limits.side:
        width, height = picture.image.size
        smaller = picture.image.copy()
        smaller.thumbnail((limits.side, limits.side))
        picture = dataclasses.replace(picture, image=smaller)
        notes.append(f"{path.name} has {width} x {height} pixels; the model sees {smaller.width} x {smaller.height}.")
        source = PREPARED.format(name=repr(path.name), side=limits.side)
    picture = dataclasses.replace(picture, path=Path(path.name))
    return Subject(_digest(path), path.name, picture, source, tuple(_without_folder(note, path) for note in notes))


def _check_pixels(path: Path, limits: Limits) -> None:
    """Refuse a picture by its header; one that cannot be read is refused later, for what it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise InputError(_too_many(path, "far more", limits)) from error
        except Exception:  # Pillow fails in many ways
            return
    if width * height > limits.pixels:
        raise InputError(_too_many(path, f"{width} x {height}", limits))


def _too_many(path: Path, pixels: str, limits: Limits) -> str:
    most = limits.pixels // MEGABYTE
    return f"{path.name} has {pixels} pixels, and the page takes {most} million at most. Scale it down first."


def _film(path: Path, limits: Limits) -> Subject:
    (clip,) = read_media(path, frames=limits.frames)
    assert isinstance(clip, Clip)
    notes = [f"Of the film {path.name}, {len(clip)} frames are read."]
    if clip.note:
        notes.append(_without_folder(clip.note, path))
    source = FILM.format(name=repr(path.name), frames=limits.frames)
    tall, wide = clip.frames.shape[1:3]
    if max(tall, wide) > limits.side:
        images = clip.images()
        for image in images:
            image.thumbnail((limits.side, limits.side))
        clip = dataclasses.replace(clip, frames=np.stack([np.asarray(image) for image in images]))
        notes.append(f"Its frames have {wide} x {tall} pixels; the model sees {images[0].width} x {images[0].height}.")
        source += f"\n# The page also scaled the frames to {images[0].width} x {images[0].height} pixels."
    clip = dataclasses.replace(clip, path=Path(path.name))
    return Subject(_digest(path), path.name, clip, source, tuple(notes))


def _digest(path: Path) -> str:
    """What tells one file's contents from another's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without_folder(text: str, path: Path) -> str:
    """A message without the folder in which the server keeps uploads."""
    return text.replace(named(path), shown(path.name)).replace(str(path), path.name)
