"""The pictures and films of a question: files or objects in, upright RGB out, and what a processor would cut off."""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from foveate.ask.pictures import BYTES, Picture, load_picture, picture_in, picture_of
from foveate.errors import InputError
from foveate.plain.files import HEAD, is_animated, is_video, local_path, scheme_of, state_of
from foveate.plain.memory import check_room
from foveate.video import Clip
from foveate.video.clip import blank_frames
from foveate.video.decoding import UNNAMED, clip_of
from foveate.video.wanted import FramesWanted

Medium = str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Picture | Clip
Media = Medium | Sequence[Medium | Sequence[Medium]]

FEW = 3
"""Frames of a clip on a model that reads pictures, where nothing is said: each has a whole picture's tokens."""
RATE = 2.0
"""Frames a second of a film that is a list of them, where nothing is said: what the processors of Qwen take."""
PREPARED = 25
"""Bytes of memory a pixel of all frames of a film until a processor is done with them, all copies together: measured on
60 and 120 frames of 1280 x 720 that go in as pictures of the embedded model, which take most."""
LITTLE = 0.01
"""The share of a picture that may be cut off without a word."""
THIN = 200
"""How many times as long as wide a picture may be: processors bring the shorter side to their own size."""


def read_media(
    media: Media, frames: int | None = None, fps: float | None = None, *, blank: bool = False
) -> list[Picture | Clip]:
    """Read pictures and videos, in order; a GIF or animated WebP is a video where frames are asked for.

    Args:
        media: A path, `file:` or `data:` URL, the bytes of a file, an open file, PIL picture, array of
            (height, width, 3) uint8, clip, or a film as the list of its frames or their array of four dimensions; or a
            sequence of them.
        frames: How many frames of a video at most; see `foveate.video.read`.
        fps: How many a second.
        blank: Whether films in files are not decoded, as only their sizes and times matter: their frames are black.

    Raises:
        InputError: If a file cannot be read, or an array is no picture.
        SettingError: If frames or fps leave their range.
        UnsupportedError: If there is a video and no PyAV.
    """
    several = isinstance(media, Sequence) and not isinstance(media, str | bytes | bytearray | memoryview)
    listed: list[object] = list(media) if several else [media]  # type: ignore[arg-type]
    return [read_medium(medium, frames, fps, blank=blank) for medium in listed]


def read_once(media: Any, frames: int | None, fps: float | None, shelf: dict[object, Any]) -> Any:
    """Media with their files read, where all are files, and from the shelf where it has them; others as they are.

    Args:
        media: As for `read_media`, or None.
        frames, fps: As for `read_media`.
        shelf: What was read, by the files' paths and states.
    """
    paths = media
    if isinstance(media, str | Path):
        paths = (media,)
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
        return media
    key = tuple((str(path), state_of(str(path))) for path in paths)
    if key not in shelf:
        shelf[key] = read_media(media, frames, fps)
    return shelf[key]


def read_medium(
    source: object,
    frames: int | None = None,
    fps: float | None = None,
    *,
    kind: str | None = None,
    start: float | None = None,
    end: float | None = None,
    blank: bool = False,
) -> Picture | Clip:
    """Read a picture or a video; see `read_media`.

    Args:
        source: What is shown.
        frames: How many frames of a video at most.
        fps: How many a second; of a list of frames, how many make a second of it (2).
        kind: "image" or "video", where a file's ending does not decide.
        start: Where a video begins, seconds.
        end: Where it ends.
        blank: Whether a film in a file is not decoded.
    """
    if isinstance(source, Picture | Clip):
        return source
    wanted = FramesWanted(frames, fps, start, end)
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        return _listed(source, kind, wanted)
    if isinstance(source, Image.Image):
        return picture_of(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise InputError(
                f"An array is a picture of shape (height, width, 3), uint8, with pixels in it; got {source.shape}, "
                f"{source.dtype}."
            )
        return Picture(None, Image.fromarray(source))
    if hasattr(source, "read"):
        if getattr(source, "seekable", bool)():  # from its beginning
            source.seek(0)  # type: ignore[attr-defined]
        source = source.read()
        if not isinstance(source, bytes):
            kind_read = type(source).__name__
            raise InputError(f"An open file gives bytes; this one gives a {kind_read}. Open it with mode 'rb'.")
    if isinstance(source, bytes | bytearray | memoryview):
        return _in_bytes(bytes(source), kind, "", wanted)
    if isinstance(source, str) and scheme_of(source) == "data":
        media_type, data = decoded(source)
        return _in_bytes(data, kind, media_type, wanted)
    if not isinstance(source, str | Path):
        raise InputError(
            "A picture or film is a path, a file: or data: URL, the bytes of a file, a PIL picture, an array, a clip "
            f"or a list of frames; got a {type(source).__name__}."
        )
    path = local_path(str(source))
    if kind == "image" or (kind is None and not is_video(path, frames_asked=wanted.asked)):
        return load_picture(path)
    return clip_of(path, wanted, PREPARED, blank=blank)


def _in_bytes(data: bytes, kind: str | None, media_type: str, wanted: FramesWanted) -> Picture | Clip:
    """The picture or film in a file's bytes: by `kind`, else by the type that a URL says; else a picture."""
    moves = media_type == "image/gif" or is_animated(data[:HEAD])
    is_film = media_type.startswith("video/") or (moves and wanted.asked)
    if kind == "video" or (kind is None and is_film):
        return clip_of(data, wanted, PREPARED)
    return picture_in(data)


def _listed(frames: Sequence[object] | np.ndarray, kind: str | None, wanted: FramesWanted) -> Clip:
    """A film whose frames are pictures, read as these are.

    Raises:
        InputError: If there is none, one is no picture, their sizes differ, or a part of the film is asked for.
    """
    if kind == "image" or not len(frames):
        raise InputError(
            f"A list is a film of one frame or more, not a picture; got {len(frames)}. Give each by itself."
        )
    if wanted.start is not None or wanted.end is not None:
        raise InputError("A part of a film is read of a file: leave frames out of the list, and start and end too.")
    pictures = [read_medium(frame, kind="image") for frame in frames]
    if len(sizes := {_size(picture) for picture in pictures}) > 1:
        (width, height), (other, less) = sorted(sizes)[:2]
        raise InputError(f"Frames of a film have one size; got {width} x {height} and {other} x {less}. Scale them.")
    rate = wanted.fps or RATE
    notes = dict.fromkeys(picture.note for picture in pictures if picture.note)
    images = np.stack([np.asarray(picture.image) for picture in pictures])  # type: ignore[union-attr]
    seconds = tuple(place / rate for place in range(len(images)))
    clip = Clip(UNNAMED, images, seconds, 0.0, len(images) / rate, rate, " ".join(notes) or None, chosen=True)
    if wanted.frames is None:
        return clip
    return clip.thinned(wanted.frames)


def decoded(url: str) -> tuple[str, bytes]:
    """The media type in a `data:` URL, in lower case, and its bytes, as browsers read them (URL and Fetch standards).

    Raises:
        InputError: If it has no comma, is not well encoded, or holds nothing.
    """
    text = re.sub(r"[\t\n\r]", "", url.strip()).partition("#")[0]
    head, comma, body = text.partition(":")[2].partition(",")
    media_type, *parameters = (part.strip().lower() for part in head.split(";"))
    why = ""
    if not comma:
        why = "there is no comma before the data"
    data = unquote_to_bytes(body.encode(errors="surrogateescape"))
    if parameters[-1:] == ["base64"]:
        data = re.sub(rb"[ \t\n\f\r]", b"", data)
        if len(data) % 4 == 0:
            data = re.sub(rb"={1,2}$", b"", data)
        if re.search(rb"[^A-Za-z0-9+/]", data) or len(data) % 4 == 1:
            why = why or "its base64 is damaged"
        else:
            data = base64.b64decode(data + b"=" * (-len(data) % 4))
    if why or not data:
        raise InputError(f"The data: URL cannot be read: {why or 'it holds nothing'}. Write data:image/png;base64,….")
    return media_type, data


def as_frames(clip: Clip, few: bool) -> tuple[Clip, str]:
    """What goes in as pictures of a clip where a model reads no videos, and a sentence that says so.

    Args:
        clip: As it was read.
        few: Whether nobody said how many frames: then a few must do.
    """
    taken = clip
    if few and not clip.chosen:
        taken = clip.thinned(FEW)
    if len(clip) == 1:
        what = f"the one frame of {clip.path} goes in as a picture"
    elif len(taken) == len(clip):
        what = f"the {len(clip)} frames of {clip.path} go in as pictures"
    else:
        what = f"of the {len(clip)} frames read of {clip.path}, {len(taken)} go in as pictures"
    return taken, f"this model reads no videos: {what}."


def refuse_thin(medium: Picture | Clip) -> None:
    """Refuse a line of pixels, of which a processor would make a band that fills the memory.

    Raises:
        InputError: If it is that thin.
    """
    width, height = _size(medium)
    if max(width, height) > THIN * min(width, height):
        name = medium.path or "A picture"
        raise InputError(f"{name} is {width} x {height} pixels, more than {THIN} times as long as wide. Crop it first.")


def crop_note(medium: Picture | Clip) -> str | None:
    """A sentence on what a model does not see whose processor takes the centre square; None if that is nothing."""
    width, height = _size(medium)
    share = 1 - min(width, height) / max(width, height)
    if share <= LITTLE:
        return None
    sides = "top and bottom"
    if width > height:
        sides = "left and right"
    name = medium.path or "the picture"
    return (
        f"the processor cuts off {share:.0%} of {name} ({sides}): the model sees only the centre square. "
        "Set fit to pad to show all of it."
    )


def padded(medium: Picture | Clip, processor: ProcessorMixin) -> Picture | Clip:
    """A medium in the middle of a square of the mean colour, so that a processor that crops leaves it whole."""
    if isinstance(medium, Picture):
        return dataclasses.replace(medium, image=square(medium.image, processor))
    side = max(_size(medium))
    if side == min(_size(medium)):
        return medium
    if not any(medium.frames.strides):
        return dataclasses.replace(medium, frames=blank_frames(len(medium), side, side))
    _check_square(_size(medium), len(medium) * side * side * BYTES)
    frames = [np.asarray(square(image, processor)) for image in medium.images()]
    return dataclasses.replace(medium, frames=np.stack(frames))


def square(image: Image.Image, processor: ProcessorMixin) -> Image.Image:
    """The picture in the middle of a square of its processor's mean colour; an odd pixel goes right or below.

    Raises:
        InputError: If the square takes more memory than there is.
    """
    red, green, blue = (int(255 * share) for share in processor.image_processor.image_mean)
    colour = red, green, blue
    side = max(image.size)
    _check_square(image.size, side * side * BYTES)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _check_square(size: tuple[int, int], need: float) -> None:
    """Refuse a square around so many pixels, or several, that take more memory than there is."""
    side = max(size)
    check_room(
        f"The {size[0]} x {size[1]} pixels, padded to {side} x {side}, take",
        need,
        "Scale or crop them first, or leave them without padding.",
    )


def _size(medium: Picture | Clip) -> tuple[int, int]:
    """Width and height."""
    if isinstance(medium, Picture):
        return medium.image.size
    return medium.frames.shape[2], medium.frames.shape[1]
