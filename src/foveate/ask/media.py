"""Pictures and films of a question: files or objects in, upright 8-bit RGB out; every odd one handled or refused."""

import base64
import dataclasses
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from transformers import ProcessorMixin

from foveate.errors import InputError
from foveate.plain.files import HEAD, is_animated, is_video, local_path, open_readable, scheme_of, spell, state_of
from foveate.plain.memory import check_room
from foveate.video import Clip
from foveate.video.clip import blank_frames
from foveate.video.decoding import UNNAMED, clip_of
from foveate.video.wanted import FramesWanted

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
A_PICTURE = "the picture"
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


def read_picture(source: Path | bytes | Image.Image) -> Picture:
    """Read a picture: of a file, of the bytes of one, or of PIL, as a file of it would give it.

    The orientation of EXIF is applied, transparency shows white, 16-bit grey becomes 8-bit, CMYK and palettes become
    RGB. Of an animation the first frame is read, or that at which PIL's stands, and a note says so.

    Raises:
        InputError: If there is no such file, it is empty, no picture, damaged, too large to be meant, or larger than
            the memory that is there.
    """
    if isinstance(source, Path):
        name = spell(source)
        with open_readable(source) as file, _explain(name), Image.open(file) as image:
            return _as_shown(image, name, source)
    with _explain(A_PICTURE):
        if isinstance(source, Image.Image):
            return _as_shown(source, A_PICTURE)
        with Image.open(io.BytesIO(source)) as image:
            return _as_shown(image, A_PICTURE)


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
def _explain(name: str) -> Iterator[None]:
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

    def on_white(band: Image.Image) -> Image.Image:
        band = _recolour(band.convert(own), shown)
        if band.mode != "RGBA":
            return band
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), band)

    return _in_bands(image, on_white)


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
            np.asarray(_recolour(probe, transform).convert("RGB"), int) - np.asarray(probe.convert("RGB"), int)
        )
    except Exception as error:  # a profile is a small program of another's
        why = _why(error)
        notes.append(f"{name} has a colour profile that cannot be used ({why:.100}); its colours are taken for sRGB.")
        return None
    if same.max() > NEAR:
        return transform
    return None


def _recolour(image: Image.Image, transform: Any) -> Image.Image:
    """The picture in other colours, where there is a transform."""
    if transform is None:
        return image
    from PIL import ImageCms

    return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]  # a new picture, not in place


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


# -- pictures and films -------------------------------------------------------------------------------------------

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
    wanted = FramesWanted(frames, fps)
    return [read_medium(medium, wanted, blank=blank) for medium in listed]


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
    source: object, wanted: FramesWanted | None = None, *, kind: str | None = None, blank: bool = False
) -> Picture | Clip:
    """Read a picture or a video; see `read_media`.

    Args:
        source: What is shown.
        wanted: Which frames of a video; of a list of frames its rate says how many make a second of it (2).
        kind: "image" or "video", where a file's ending does not decide.
        blank: Whether a film in a file is not decoded.
    """
    if isinstance(source, Picture | Clip):
        return source
    wanted = wanted or FramesWanted()
    if isinstance(source, list | tuple) or (isinstance(source, np.ndarray) and source.ndim == 4):
        return _film_of(source, kind, wanted)
    if isinstance(source, Image.Image):
        return read_picture(source)
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
        media_type, data = decode_url(source)
        return _in_bytes(data, kind, media_type, wanted)
    if not isinstance(source, str | Path):
        raise InputError(
            "A picture or film is a path, a file: or data: URL, the bytes of a file, a PIL picture, an array, a clip "
            f"or a list of frames; got a {type(source).__name__}."
        )
    path = local_path(str(source))
    if kind == "image" or (kind is None and not is_video(path, frames_asked=wanted.asked)):
        return read_picture(path)
    return clip_of(path, wanted, PREPARED, blank=blank)


def _in_bytes(data: bytes, kind: str | None, media_type: str, wanted: FramesWanted) -> Picture | Clip:
    """The picture or film in a file's bytes: by `kind`, else by the type that a URL says; else a picture."""
    moves = media_type == "image/gif" or is_animated(data[:HEAD])
    is_film = media_type.startswith("video/") or (moves and wanted.asked)
    if kind == "video" or (kind is None and is_film):
        return clip_of(data, wanted, PREPARED)
    return read_picture(data)


def _film_of(frames: Sequence[object] | np.ndarray, kind: str | None, wanted: FramesWanted) -> Clip:
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


def decode_url(url: str) -> tuple[str, bytes]:
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


def pad(medium: Picture | Clip, processor: ProcessorMixin) -> Picture | Clip:
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
