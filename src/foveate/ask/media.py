"""The pictures and films of a question: files or objects in, upright RGB out, and what a processor would cut off."""

import base64
import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveate._files import is_video
from foveate._memory import check_room
from foveate._upstream import shown
from foveate.ask.pictures import BYTES, Picture, load_picture, picture_of
from foveate.errors import InputError
from foveate.video import Clip, read

__all__ = ["Media", "as_frames", "crop_note", "padded", "read_media", "read_medium", "refuse_thin", "square"]

Medium = str | Path | Image.Image | np.ndarray | Picture | Clip
Media = Medium | Sequence[Medium]

FEW = 3
"""Frames of a clip on a model that reads pictures, where nothing is said: each has a whole picture's tokens."""
LITTLE = 0.01
"""The share of a picture that may be cut off without a word."""
THIN = 200
"""How many times as long as wide a picture may be: processors bring the shorter side to their own size."""


def read_media(media: Media, frames: int | None = None, fps: float | None = None) -> list[Picture | Clip]:
    """Read pictures and videos, in order; a GIF is a video where frames are asked for.

    Args:
        media: A path, PIL picture, array of (height, width, 3) uint8, or clip; or a sequence of them.
        frames: How many frames of a video at most; see `foveate.video.read`.
        fps: How many a second.

    Raises:
        InputError: If a file cannot be read, or an array is no picture.
        SettingError: If frames or fps leave their range.
        UnsupportedError: If there is a video and no PyAV.
    """
    several = isinstance(media, Sequence) and not isinstance(media, str)
    listed: list[Any] = list(media) if several else [media]  # type: ignore[arg-type]
    return [read_medium(medium, frames, fps) for medium in listed]


def read_medium(
    source: Any,
    frames: int | None = None,
    fps: float | None = None,
    *,
    kind: str | None = None,
    start: float | None = None,
    end: float | None = None,
) -> Picture | Clip:
    """Read a picture or a video, which may be a `data:` URL too; see `read_media`.

    Args:
        source: What is shown.
        frames: How many frames of a video at most.
        fps: How many a second.
        kind: "image" or "video", where a file's ending does not decide.
        start: Where a video begins, seconds.
        end: Where it ends.
    """
    if isinstance(source, Picture | Clip):
        return source
    if isinstance(source, Image.Image):
        return picture_of(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise InputError(
                f"An array is a picture of shape (height, width, 3), uint8, with pixels in it; got {source.shape}, "
                f"{source.dtype}."
            )
        return Picture(None, Image.fromarray(source))
    if not isinstance(source, str | Path):
        raise InputError(f"A picture is a path, a PIL picture, an array or a clip; got a {type(source).__name__}.")
    if isinstance(source, str) and source.startswith("data:"):
        return _decoded(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise InputError(f"Nothing is downloaded by itself: fetch {shown(source)} first, and name the file.")
    path = Path(source)
    if kind == "image" or (kind is None and not is_video(path, frames_asked=frames is not None or fps is not None)):
        return load_picture(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the same sentence is the clip's note
        return read(path, frames=frames, fps=fps, start=start, end=end)


def _decoded(url: str) -> Picture:
    """The picture in a `data:` URL."""
    head, _, body = url.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("it is not base64")
        with Image.open(io.BytesIO(base64.b64decode(body, validate=True))) as image:
            return picture_of(image, "the picture in the data: URL")
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"The picture in the data: URL cannot be read: {error}.") from error


def as_frames(clip: Clip, few: bool) -> tuple[Clip, str]:
    """What goes in as pictures of a clip where a model reads no videos, and a sentence that says so.

    Args:
        clip: As it was read.
        few: Whether nobody said how many frames: then a few must do.
    """
    taken = clip.thinned(FEW) if few else clip
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
        name = "A picture" if medium.path is None else str(medium.path)
        raise InputError(f"{name} is {width} x {height} pixels, more than {THIN} times as long as wide. Crop it first.")


def crop_note(medium: Picture | Clip) -> str | None:
    """A sentence on what a model does not see whose processor takes the centre square; None if that is nothing."""
    width, height = _size(medium)
    share = 1 - min(width, height) / max(width, height)
    if share <= LITTLE:
        return None
    sides = "left and right" if width > height else "top and bottom"
    name = "the picture" if medium.path is None else str(medium.path)
    return (
        f"the processor cuts off {share:.0%} of {name} ({sides}): the model sees only the centre square. "
        "Set fit to pad to show all of it."
    )


def padded(medium: Picture | Clip, processor: Any) -> Picture | Clip:
    """The same in the middle of a square of the mean colour, so that a processor that crops leaves it whole."""
    if isinstance(medium, Picture):
        return dataclasses.replace(medium, image=square(medium.image, processor))
    side = max(_size(medium))
    if side == min(_size(medium)):
        return medium
    _check_square(_size(medium), len(medium) * side * side * BYTES)
    frames = [np.asarray(square(image, processor)) for image in medium.images()]
    return dataclasses.replace(medium, frames=np.stack(frames))


def square(image: Image.Image, processor: Any) -> Image.Image:
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
