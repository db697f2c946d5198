"""Picture files in, upright 8-bit RGB out: every odd one handled, or refused by name."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from foveate._files import check_readable
from foveate.errors import InputError

__all__ = ["Picture", "load_picture", "picture_of"]


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the model will see it.

    Attributes:
        path: Where it came from; None for one that was never a file.
        image: Upright, 8 bits, RGB.
        note: What the user should know, such as that only the first frame was read; None mostly.
    """

    path: Path | None
    image: Image.Image
    note: str | None = None


def load_picture(path: Path) -> Picture:
    """Read a picture file.

    The orientation of EXIF is applied, transparency shows white, 16-bit grey becomes 8-bit, CMYK and
    palettes become RGB; of an animation the first frame is read, and a note says so.

    Raises:
        InputError: If there is no such file, it is empty, no picture, damaged, or too large to be meant.
    """
    check_readable(path)
    with _explained(path), Image.open(path) as image:
        frames, kind = int(getattr(image, "n_frames", 1)), image.format
        image.seek(0)
        image.load()
        upright, turned = _upright(image)
        rgb = _rgb(upright, path)
    if not turned:
        return Picture(path, rgb, f"{path} has unreadable EXIF data; it is taken as it lies.")
    if frames > 1 and kind != "MPO":  # MPO: a phone's JPEG with a second view, no animation
        return Picture(path, rgb, f"{path} has {frames} frames; only the first is read.")
    return Picture(path, rgb)


def picture_of(image: Image.Image, name: str = "the picture") -> Picture:
    """A PIL picture as the model will see it: what a file of it would give.

    Raises:
        InputError: If its pixels are read only now and are damaged, or it is too large to be meant.
    """
    with _explained(name):
        upright, _ = _upright(image)
        return Picture(None, _rgb(upright, name))


@contextmanager
def _explained(path: Path | str) -> Iterator[None]:
    """Turn whatever Pillow raises for a file into one line with the file's name."""
    # Pillow fills what a file lacks with grey where anything in the process, such as lmms-eval's tasks, asked it to.
    lenient, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings():
            # Between Pillow's limit and twice it there is only a warning: large photographs are fine.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", module="PIL")
            yield
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise InputError(
            f"{path} unpacks to more than {limit:,} pixels, which looks like a decompression bomb. "
            "If it is a real picture, scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is not a picture that Pillow can read. Convert it to PNG or JPEG. "
            "The name of a video ends in .mp4, .mkv, .webm or the like."
        ) from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Check its rights.") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, zlib.error and more.
    except Exception as error:
        raise InputError(f"{path} is damaged: {error}. Fetch or export it again.") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as EXIF says it was held, and whether its EXIF could be read."""
    try:
        return ImageOps.exif_transpose(image), True
    except Exception:  # damaged EXIF fails in as many ways as damaged pixels; these are fine
        return image, False


def _rgb(image: Image.Image, path: Path | str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_eight_bits(np.asarray(image), image.mode, path)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, mode: str, path: Path | str) -> np.ndarray:
    """Deep grey to 8 bits: integers of 16 bits by their high byte, floats from [0, 1].

    Pillow's own conversion clips at 255 instead, which turns nearly everything white.
    """
    top = 1.0 if mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= top:
        raise InputError(
            f"{path} holds grey values from {low:g} to {high:g}, where 0 to {top:g} was expected. "
            "Save it with 8 or 16 bits."
        )
    return (values.astype(np.float64) * (255 / top)).round().astype(np.uint8)
