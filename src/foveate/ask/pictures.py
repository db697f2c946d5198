"""Picture files in, upright 8-bit RGB out: every odd one handled, or refused by name."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from foveate.errors import InputError
from foveate.plain.files import named, open_readable
from foveate.plain.memory import check_room

BYTES = 14
"""Bytes of memory a pixel while a processor works on a picture, all copies together.

Measured on one of 13300 x 13300 pixels with the processor of CLIP that needs no torchvision; Pillow alone holds 4.
"""
LONGEST = 1_000_000
"""Pixels a side. Pillow takes 8 bytes more for every row of each copy; a damaged header may name a hundred million."""
NEAR = 2
"""Levels of 255 by which a profile may differ from sRGB and count as it: two programs' sRGB differ by so much."""
BAND = 2**20
"""Pixels that are worked on at a time where that takes several times the memory of the picture."""
WHOLE = ("MPO", "PSD")
"""Files of which the first picture is all: a phone's JPEG with a second view, and layers that are one picture."""
UNNAMED = "the picture"
WIDTHS = (8, 10, 12, 14)
"""Bits that a grey value may have in a file of more."""
NIGHT = 64
"""What no colour of 8 bits reaches whose values have 14 bits in a file of 16."""
UNKNOWN = re.compile("unsupported|unimplemented|unknown|not supported|not available", re.IGNORECASE)
"""What Pillow's errors say of files that it does not know; of damaged ones they say anything else."""


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
        InputError: If there is no such file, it is empty, no picture, damaged, too large to be meant, or larger than
            the memory that is there.
    """
    name = named(path)
    with open_readable(path) as file, _explained(name), Image.open(file) as image:
        return _as_shown(image, name, path)


def picture_in(data: bytes) -> Picture:
    """The picture in the bytes of a file, read as `load_picture` reads one.

    Raises:
        InputError: As `load_picture`.
    """
    with _explained(UNNAMED), Image.open(io.BytesIO(data)) as image:
        return _as_shown(image, UNNAMED)


def picture_of(image: Image.Image) -> Picture:
    """A PIL picture as the model will see it: what a file of it would give.

    Of an animation the frame is taken that it stands at.

    Raises:
        InputError: If its pixels are read only now and are damaged, or it is larger than is meant or than the memory
            that is there.
    """
    with _explained(UNNAMED):
        return _as_shown(image, UNNAMED)


def _as_shown(image: Image.Image, name: str, path: Path | None = None) -> Picture:
    """The frame that a picture stands at: with its pixels read, upright, RGB, and with a note where one is due."""
    _check(image, name)
    notes: list[str] = []
    kind, place, frames = image.format, image.tell(), 1
    if getattr(image, "fp", None) is not None:  # of a closed file, no other frame can be looked for
        frames = int(getattr(image, "n_frames", 1))
    if image.tell() != place:
        image.seek(place)
    top, squeezed = _top_value(image), any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    upright, turned = _upright(image)
    rgb = _rgb(upright, name, top, notes)
    of_colours: Any = upright.getextrema() if squeezed and upright.mode.startswith("RGB") else ()
    if of_colours and max(high for _, high in of_colours[:3]) < NIGHT:
        notes.append(f"{name} has 16 bits a colour and uses few of them: it is nearly black. Save it with 8 bits.")
    if not turned:
        notes.append(f"{name} has unreadable EXIF data; it is taken as it lies.")
    if frames > 1 and kind not in WHOLE:
        which = f"number {place + 1}" if place else "the first"
        notes.append(f"{name} has {frames} frames; only {which} is read.")
    return Picture(path, rgb, " ".join(notes) or None)


def _check(image: Image.Image, name: str) -> None:
    """Refuse a picture by its header, before its pixels are read.

    Raises:
        InputError: If it has no pixels of its own, a side that cannot be meant, or more than there is memory for.
    """
    if isinstance(image, ImageFile.StubImageFile) or image.format == "EPS":
        # Pillow would run another program for these, if there is one.
        raise InputError(f"{name} holds {image.format}, a drawing or data and no pixels. Convert it to PNG or JPEG.")
    width, height = image.size
    if not width * height:
        raise InputError(f"{name} has no pixels: it is {width} x {height}. Export it again.")
    if max(width, height) > LONGEST:
        raise InputError(f"{name} says it is {width} x {height} pixels: it is damaged, or no picture. Export it again.")
    check_room(f"The {width} x {height} pixels of {name} take", width * height * BYTES, "Scale it down first.")


@contextmanager
def _explained(name: str) -> Iterator[None]:
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
            f"{name} unpacks to more than {limit:,} pixels, which looks like a decompression bomb. "
            "If it is a real picture, scale it down first."
        ) from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} is not a picture that Pillow can read. Convert it to PNG or JPEG. "
            "The name of a video ends in .mp4, .mkv, .webm or the like."
        ) from error
    except MemoryError as error:
        raise InputError(f"{name} takes more memory than there is. Scale it down first.") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, zlib.error and more.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # of the disk, not of the decoder
            raise InputError(f"{name} cannot be read: {error.strerror}. Copy it to another place first.") from error
        why = _why(error)
        if isinstance(error, NotImplementedError) or UNKNOWN.search(why):
            raise InputError(
                f"{name} is of a kind that Pillow does not read: {why:.200}. Convert it to PNG."
            ) from error
        raise InputError(f"{name} is damaged: {why:.200}. Fetch or export it again.") from error
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = lenient


def _why(error: Exception) -> str:
    """What an error says, in one line without its full stop; its type where it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """The picture as EXIF says it was held, and whether its EXIF could be read."""
    try:
        return ImageOps.exif_transpose(image), True
    except Exception:  # damaged EXIF fails in as many ways as damaged pixels; these are fine
        return image, False


def _rgb(image: Image.Image, name: str, top: int | None, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _eight_bits(image, name, top, notes)
    own = image.mode if image.mode in ("L", "CMYK") else "RGB"
    if image.has_transparency_data:
        own = "RGBA"
    shown = _to_srgb(image, own, name, notes)
    if shown is None and own != "RGBA":
        return image.convert("RGB")
    return _in_bands(image, lambda band: _on_white(_changed(band.convert(own), shown)))


def _to_srgb(image: Image.Image, mode: str, name: str, notes: list[str]) -> object:
    """What brings colours of this mode to sRGB by the picture's ICC profile; None where it has none, or none else."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGBA" if mode == "RGBA" else "RGB"
        )
        colours = Image.fromarray(np.indices((16, 16, 16), np.uint8).reshape(3, 64, 64).transpose(1, 2, 0) * 17)
        probe = colours.convert(mode)
        same = np.abs(
            np.asarray(_changed(probe, transform).convert("RGB"), int) - np.asarray(probe.convert("RGB"), int)
        )
    except Exception as error:  # a profile is a small program of another's
        why = _why(error)
        notes.append(f"{name} has a colour profile that cannot be used ({why:.100}); its colours are taken for sRGB.")
        return None
    if same.max() > NEAR:
        return transform
    return None


def _changed(image: Image.Image, transform: Any) -> Image.Image:
    """The picture in other colours, where there is a transform."""
    if transform is None:
        return image
    from PIL import ImageCms

    return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]  # a new picture, not in place


def _on_white(image: Image.Image) -> Image.Image:
    """The picture on a white page, where it lets one through."""
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _top_value(image: Image.Image) -> int | None:
    """The largest grey value of as many bits as a file says that its values have; None where it says nothing."""
    bits = 16
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        bits = min(np.ravel(tags.get(258, bits)))
        largest = tags.get(341, tags.get(281))  # SMaxSampleValue, MaxSampleValue
        if largest is not None:
            return int(2 ** int(np.max(largest)).bit_length() - 1)
    elif image.format == "PNG" and getattr(image, "fp", None) is not None:
        place = image.fp.tell()  # type: ignore[attr-defined]
        image.fp.seek(0)  # type: ignore[attr-defined]
        named_bits = re.search(rb"\0\0\0\x01sBIT(.)", image.fp.read(place), re.DOTALL)  # type: ignore[attr-defined]
        return named_bits and 2 ** named_bits[1][0] - 1
    return 2 ** int(bits) - 1 if bits < 16 else None


def _eight_bits(image: Image.Image, name: str, named_top: int | None, notes: list[str]) -> Image.Image:
    """Deep grey to 8 bits: integers from as many bits as they have, floats from [0, 1].

    Pillow's own conversion clips at 255 instead, which turns nearly everything white.

    Args:
        image: Of mode I, I;16 or F.
        name: What it is called.
        named_top: The largest value that its file names; None where it names none.
        notes: Where it is noted that the bits were guessed.
    """
    top = 1.0 if image.mode == "F" else 65535.0
    extremes = [(np.min(values), np.max(values)) for values in map(np.asarray, _bands(image))]
    low, high = np.min(extremes), np.max(extremes)
    if not 0 <= low <= high <= top:  # nor where one is no number
        raise InputError(
            f"{name} holds grey values from {low:g} to {high:g}, where 0 to {top:g} was expected. "
            "Save it with 8 or 16 bits."
        )
    if image.mode != "F" and named_top is not None and high <= named_top:
        top = min(top, named_top)
    elif image.mode != "F" and named_top is None and 0 < high < 2 ** max(WIDTHS):
        bits = next(bits for bits in WIDTHS if high < 2**bits)
        top = 2**bits - 1
        notes.append(
            f"{name} has grey values up to {high} of 65535: they are taken for {bits} bits, so {top} is white."
        )

    def shades(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        return Image.fromarray((values * (255 / top)).round().astype(np.uint8))

    return _in_bands(image, shades)


def _in_bands(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The picture as RGB, changed a band of rows at a time: what `change` needs beside it is small."""
    rgb = Image.new("RGB", image.size)
    top = 0
    for band in _bands(image):
        rgb.paste(change(band).convert("RGB"), (0, top))
        top += band.height
    return rgb


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Some rows after some others, from the top."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))
