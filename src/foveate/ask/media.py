"""Read images and videos from files or objects as upright 8-bit RGB. Unusual ones are converted or refused."""

import base64
import dataclasses
import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from transformers import ProcessorMixin

from foveate.errors import InputError
from foveate.plain.files import HEAD, is_animated, is_video, local_path, open_readable, scheme_of, spell, state_of
from foveate.plain.memory import check_room
from foveate.plain.upstream import Shared, ignored
from foveate.video import Clip
from foveate.video.clips import blank_frames
from foveate.video.decoding import UNNAMED, clip_of
from foveate.video.wanted import FramesWanted

BYTES = 14
"""Peak bytes of memory per pixel during preprocessing of an image, all copies together.

Measured on 13300 x 13300 pixels with CLIP's processor without torchvision. Pillow alone holds 4.
"""
LONGEST = 1_000_000
"""Maximum pixels of a side. Pillow needs 8 more bytes per row of each copy, and a damaged header may name 10^8 rows."""
NEAR = 2
"""Levels of 255 by which a colour profile may differ from sRGB and still count as sRGB.

The sRGB profiles of two programs differ by this much.
"""
BAND = 2**20
"""Pixels that are converted at a time, because converting takes several times the image's memory."""
WHOLE = ("MPO", "PSD")
"""Formats whose first frame is the image: a phone's JPEG with a second view, and a file of layers."""
A_PICTURE = "the picture"
WIDTHS = (8, 10, 12, 14)
"""Possible bit depths of grey values that are stored in 16 bits."""
NIGHT = 64
"""Upper bound of 8-bit colours that come from 14-bit values stored in 16 bits: 2**14 / 2**8 = 64."""
LENIENT = ImageFile, "LOAD_TRUNCATED_IMAGES"
WHOLE_FILES = Shared(partial(getattr, *LENIENT), partial(setattr, *LENIENT), False)
"""If any code in the process (such as lmms-eval's tasks) sets this, Pillow fills truncated files with grey."""
OF_PILLOW = ignored(Warning, "PIL")
"""Of broken metadata, and of pictures between Pillow's limit and twice the limit: large photographs are fine."""
UNKNOWN = re.compile("unsupported|unimplemented|unknown|not supported|not available", re.IGNORECASE)
"""Words in Pillow's errors for formats that it does not support. Its errors for damaged files have none of them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the model will see it.

    Attributes:
        path: The file it was read from, or None.
        image: The image: upright, 8-bit RGB.
        note: A note for the user, such as that only the first frame was read, or None.
    """

    path: Path | None
    image: Image.Image
    note: str | None = None


def read_picture(source: Path | bytes | Image.Image) -> Picture:
    """Read an image from a file, its bytes, or a PIL image.

    The EXIF orientation is applied, transparency becomes white, 16-bit grey becomes 8-bit, and CMYK and palettes become
    RGB. An animation gives its first frame, or the current frame of a PIL image, with a note.

    Raises:
        InputError: If the file is missing, empty, damaged or not an image, or if it needs more memory than there is.
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
    """Return an image's current frame as upright RGB, with a note if needed."""
    _check(image, name)
    notes: list[str] = []
    kind, place, frames = image.format, image.tell(), 1
    if getattr(image, "fp", None) is not None:  # a closed file's frames cannot be counted
        frames = int(getattr(image, "n_frames", 1))
    if image.tell() != place:
        image.seek(place)
    top, squeezed = _top_value(image), any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image.load()
    upright, turned = _upright(image)
    rgb = _rgb(upright, name, top, notes)
    of_colours: Any = upright.getextrema() if squeezed and upright.mode.startswith("RGB") else ()
    if of_colours and max(high for _, high in of_colours[:3]) < NIGHT:
        notes.append(f"{name} has 16 bits per colour and uses few of them: it is nearly black. Save it with 8 bits.")
    if not turned:
        notes.append(f"{name} has unreadable EXIF data, so it is not rotated.")
    if frames > 1 and kind not in WHOLE:
        which = f"number {place + 1}" if place else "the first"
        notes.append(f"{name} has {frames} frames; only {which} is read.")
    return Picture(path, rgb, " ".join(notes) or None)


def _check(image: Image.Image, name: str) -> None:
    """Check an image's header before its pixels are read.

    Raises:
        InputError: If it has no pixels, an implausible size, or more pixels than fit into memory.
    """
    if isinstance(image, ImageFile.StubImageFile) or image.format == "EPS":
        # Pillow would start another program for these, if one is installed.
        raise InputError(f"{name} holds {image.format}, a drawing or data and no pixels. Convert it to PNG or JPEG.")
    width, height = image.size
    if not width * height:
        raise InputError(f"{name} has no pixels: it is {width} x {height}. Export it again.")
    if max(width, height) > LONGEST:
        raise InputError(f"{name} claims {width} x {height} pixels: it is damaged, or no picture. Export it again.")
    check_room(f"The {width} x {height} pixels of {name} take", width * height * BYTES, "Scale it down first.")


@contextmanager
def _explain(name: str) -> Iterator[None]:
    """Turn any error of Pillow into an `InputError` of one line with the file's name."""
    try:
        with WHOLE_FILES, OF_PILLOW:
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
            f"{name} is damaged, or is not a picture that Pillow can read. Fetch it again, or export it as PNG or "
            "JPEG. The name of a video must end in .mp4, .mkv, .webm or similar."
        ) from error
    except MemoryError as error:
        raise InputError(f"{name} takes more memory than there is. Scale it down first.") from error
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, zlib.error and more.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:  # an error of the disk, not of the decoder
            raise InputError(f"{name} cannot be read: {error.strerror}. Copy it to another place first.") from error
        why = _why(error)
        if isinstance(error, NotImplementedError) or UNKNOWN.search(why):
            raise InputError(
                f"{name} has a format that Pillow does not read: {why:.200}. Convert it to PNG."
            ) from error
        raise InputError(f"{name} is damaged: {why:.200}. Fetch or export it again.") from error


def _why(error: Exception) -> str:
    """Return an error's message in one line without its full stop, or its type if there is no message."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _upright(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return the image rotated as its EXIF data says, and whether the EXIF data could be read."""
    try:
        return ImageOps.exif_transpose(image), True
    except Exception:  # damaged EXIF data raises many kinds of errors; the pixels are still fine
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
    """Return the transform from the image's ICC profile to sRGB for colours of `mode`.

    None if the image has no usable profile, or one that is nearly sRGB.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), mode, "RGBA" if mode == "RGBA" else "RGB"
        )
        # Probe with a 16 x 16 x 16 grid of colours: (3, 16, 16, 16) -> (3, 64, 64) -> (64, 64, 3), values 0, 17, … 255.
        colours = Image.fromarray(np.indices((16, 16, 16), np.uint8).reshape(3, 64, 64).transpose(1, 2, 0) * 17)
        probe = colours.convert(mode)
        same = np.abs(
            np.asarray(_recolour(probe, transform).convert("RGB"), int) - np.asarray(probe.convert("RGB"), int)
        )
    except Exception as error:  # an untrusted profile can raise any error
        why = _why(error)
        notes.append(f"{name} has a colour profile that cannot be used ({why:.100}); its colours are read as sRGB.")
        return None
    if same.max() > NEAR:
        return transform
    return None


def _recolour(image: Image.Image, transform: Any) -> Image.Image:
    """Apply a colour transform, if there is one."""
    if transform is None:
        return image
    from PIL import ImageCms

    return ImageCms.applyTransform(image, transform)  # type: ignore[return-value]  # a new picture, not in place


def _top_value(image: Image.Image) -> int | None:
    """Return the largest grey value of the bit depth that a TIFF's tags or a PNG's sBIT chunk declare, or None."""
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
    """Scale deep grey values to 8 bits: integers from their bit depth, floats from [0, 1].

    Pillow's own conversion clips at 255, which turns nearly everything white.

    Args:
        image: An image of mode I, I;16 or F.
        name: Its name in messages.
        named_top: The largest value that its file declares, or None.
        notes: List to which a note is added if the bit depth was guessed.
    """
    top = 1.0 if image.mode == "F" else 65535.0
    extremes = [(np.min(values), np.max(values)) for values in map(np.asarray, _bands(image))]
    low, high = np.min(extremes), np.max(extremes)
    if not 0 <= low <= high <= top:  # also True for NaN
        raise InputError(
            f"{name} holds grey values from {low:g} to {high:g}, where 0 to {top:g} was expected. "
            "Save it with 8 or 16 bits."
        )
    if image.mode != "F" and named_top is not None and high <= named_top:
        top = min(top, named_top)
    elif image.mode != "F" and named_top is None and 0 < high < 2 ** max(WIDTHS):
        bits = next(bits for bits in WIDTHS if high < 2**bits)
        top = 2**bits - 1
        notes.append(f"{name} has grey values up to {high} of 65535: they are read as {bits} bits, so {top} is white.")

    def shades(band: Image.Image) -> Image.Image:
        values = np.asarray(band).astype(np.float64)
        return Image.fromarray((values * (255 / top)).round().astype(np.uint8))

    return _in_bands(image, shades)


def _in_bands(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB with `change`, one band of rows at a time to save memory."""
    rgb = Image.new("RGB", image.size)
    top = 0
    for band in _bands(image):
        rgb.paste(change(band).convert("RGB"), (0, top))
        top += band.height
    return rgb


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """Yield the image as bands of rows of about `BAND` pixels, from the top."""
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


# -- pictures and films -------------------------------------------------------------------------------------------

Medium = str | Path | bytes | IO[bytes] | Image.Image | np.ndarray | Picture | Clip
Media = Medium | Sequence[Medium | Sequence[Medium]]

FEW = 3
"""Default frames of a video on a model that reads only images, where each frame costs a whole image's tokens."""
RATE = 2.0
"""Default frames per second of a video given as a list of frames, as in Qwen's processors."""
PREPARED = 25
"""Peak bytes of memory per pixel of all frames of a video during preprocessing, all copies together.

Measured on 60 and 120 frames of 1280 x 720 that the embedded model reads as images, the case that needs most.
"""
LITTLE = 0.01
"""Share of an image that may be cropped without a note."""
THIN = 200
"""Maximum ratio of an image's sides. Processors scale the shorter side up, so thinner images would fill the memory."""


def read_media(media: Media, frames: int | None = None, fps: float | None = None) -> list[Picture | Clip]:
    """Read images and videos, in order. A GIF or animated WebP is a video if `frames` or `fps` is given.

    Args:
        media: One or a sequence of: a path, a `file:` or `data:` URL, a file's bytes, an open file, a PIL image, an
            array (height, width, 3) uint8, a clip, or a video as a list of frames or an array
            (frames, height, width, 3) uint8.
        frames: Maximum frames of a video; see `foveate.video.read`.
        fps: Frames per second read from a video.

    Raises:
        InputError: If a file cannot be read, or an array is not an image.
        SettingError: If `frames` or `fps` is out of range.
        UnsupportedError: If there is a video and PyAV is not installed.
    """
    several = isinstance(media, Sequence) and not isinstance(media, str | bytes | bytearray | memoryview)
    listed: list[object] = list(media) if several else [media]  # type: ignore[arg-type]
    wanted = FramesWanted(frames, fps)
    return [read_medium(medium, wanted) for medium in listed]


def read_once(media: Any, frames: int | None, fps: float | None, shelf: dict[object, Any]) -> Any:
    """Read media through a cache if all of them are paths. Return other media unchanged.

    Args:
        media: As for `read_media`, or None.
        frames, fps: As for `read_media`.
        shelf: The cache, by the files' paths and states.
    """
    paths = media
    if isinstance(media, str | Path):
        paths = (media,)
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str | Path) for path in paths):
        return media
    key = tuple((str(path), state_of(path)) for path in paths)
    if key not in shelf:
        shelf[key] = read_media(media, frames, fps)
    return shelf[key]


def read_medium(
    source: object, wanted: FramesWanted | None = None, *, kind: str | None = None, blank: bool = False
) -> Picture | Clip:
    """Read one image or video; see `read_media`.

    Args:
        source: The image or video.
        wanted: The frames to read from a video. For a list of frames, its `fps` is the list's frame rate (default 2).
        kind: "image" or "video", to override the file's name and content. None decides by them.
        blank: Return black frames instead of decoding a video file, if only sizes and times matter.
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
                f"An array must be a picture of shape (height, width, 3), uint8, and not empty; got {source.shape}, "
                f"{source.dtype}."
            )
        return Picture(None, Image.fromarray(source))
    if hasattr(source, "read"):
        if getattr(source, "seekable", bool)():  # without `seekable`: bool() is False
            source.seek(0)  # type: ignore[attr-defined]
        source = source.read()
        if not isinstance(source, bytes):
            kind_read = type(source).__name__
            raise InputError(f"An open file must give bytes; this one gives a {kind_read}. Open it with mode 'rb'.")
    if isinstance(source, bytes | bytearray | memoryview):
        return _in_bytes(bytes(source), kind, "", wanted)
    if isinstance(source, str) and scheme_of(source) == "data":
        media_type, data = decode_url(source)
        return _in_bytes(data, kind, media_type, wanted)
    if not isinstance(source, str | Path):
        raise InputError(
            "A picture or film must be a path, a file: or data: URL, the bytes of a file, a PIL picture, an array, a "
            f"clip or a list of frames; got a {type(source).__name__}."
        )
    path = local_path(source)
    if kind == "image" or (kind is None and not is_video(path, frames_asked=wanted.asked)):
        return read_picture(path)
    return clip_of(path, wanted, PREPARED, blank=blank)


def _in_bytes(data: bytes, kind: str | None, media_type: str, wanted: FramesWanted) -> Picture | Clip:
    """Read an image or video from a file's bytes. Its kind is `kind`, else that of the URL's media type."""
    moves = media_type == "image/gif" or is_animated(data[:HEAD])
    is_film = media_type.startswith("video/") or (moves and wanted.asked)
    if kind == "video" or (kind is None and is_film):
        return clip_of(data, wanted, PREPARED)
    return read_picture(data)


def _film_of(frames: Sequence[object] | np.ndarray, kind: str | None, wanted: FramesWanted) -> Clip:
    """Make a video of a list of frames, each read as an image.

    Raises:
        InputError: If the list is empty, an entry is not an image, sizes differ, or a start or end is given.
    """
    if kind == "image" or not len(frames):
        raise InputError(
            f"A list must be a film of one frame or more, not a picture; got {len(frames)}. Pass pictures one by one."
        )
    if wanted.start is not None or wanted.end is not None:
        raise InputError("start and end need a film that is read of a file: leave them out, and shorten the list.")
    pictures = [read_medium(frame, kind="image") for frame in frames]
    if len(sizes := {size_of(picture) for picture in pictures}) > 1:
        (width, height), (other, less) = sorted(sizes)[:2]
        raise InputError(
            f"Frames of a film must have one size; got {width} x {height} and {other} x {less}. Scale them first."
        )
    rate = wanted.fps or RATE
    notes = dict.fromkeys(picture.note for picture in pictures if picture.note)
    images = np.stack([np.asarray(picture.image) for picture in pictures])  # type: ignore[union-attr]
    seconds = tuple(place / rate for place in range(len(images)))
    clip = Clip(UNNAMED, images, seconds, 0.0, len(images) / rate, rate, " ".join(notes) or None, chosen=True)
    if wanted.frames is None:
        return clip
    return clip.thinned(wanted.frames)


def decode_url(url: str) -> tuple[str, bytes]:
    """Decode a `data:` URL as browsers do (Fetch standard). Return its media type in lower case, and its bytes.

    Raises:
        InputError: If the URL has no comma, is badly encoded, or has no data.
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
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except ValueError:
            why = why or "its base64 is damaged"
    if why or not data:
        raise InputError(f"The data: URL cannot be read: {why or 'it holds nothing'}. Write data:image/png;base64,….")
    return media_type, data


def as_frames(clip: Clip, few: bool) -> tuple[Clip, str]:
    """Return the frames that a model without video input reads as images, and a note on it.

    Args:
        clip: The video as it was read.
        few: Whether the user set no number of frames. Then at most `FEW` are taken.
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
    """Refuse an extremely thin image, because scaling its shorter side up would fill the memory.

    Raises:
        InputError: If the ratio of its sides exceeds `THIN`.
    """
    width, height = size_of(medium)
    if max(width, height) > THIN * min(width, height):
        name = medium.path or "A picture"
        raise InputError(f"{name} is {width} x {height} pixels, more than {THIN} times as long as wide. Crop it first.")


def crop_note(medium: Picture | Clip) -> str | None:
    """Return a note on the share that a crop to the centre square hides, or None if it is at most `LITTLE`."""
    width, height = size_of(medium)
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
    """Pad an image or video to a square of the mean colour, so that the processor crops nothing."""
    if isinstance(medium, Picture):
        return dataclasses.replace(medium, image=square(medium.image, processor))
    side = max(size_of(medium))
    if side == min(size_of(medium)):
        return medium
    if not any(medium.frames.strides):
        return dataclasses.replace(medium, frames=blank_frames(len(medium), side, side))
    _check_square(size_of(medium), len(medium) * side * side * BYTES)
    frames = [np.asarray(square(image, processor)) for image in medium.images()]
    return dataclasses.replace(medium, frames=np.stack(frames))


def square(image: Image.Image, processor: ProcessorMixin) -> Image.Image:
    """Centre an image on a square of its processor's mean colour. An odd pixel goes right or below.

    Raises:
        InputError: If the square needs more memory than there is.
    """
    red, green, blue = (int(255 * share) for share in processor.image_processor.image_mean)
    colour = red, green, blue
    side = max(image.size)
    _check_square(image.size, side * side * BYTES)
    canvas = Image.new("RGB", (side, side), colour)
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas


def _check_square(size: tuple[int, int], need: float) -> None:
    """Refuse padded squares that need more memory than there is.

    Args:
        size: Width and height before padding.
        need: Bytes of all squares.
    """
    side = max(size)
    check_room(
        f"The {size[0]} x {size[1]} pixels, padded to {side} x {side}, take",
        need,
        "Scale or crop them first, or leave them without padding.",
    )


def size_of(medium: Picture | Clip) -> tuple[int, int]:
    """Return width and height in pixels."""
    if isinstance(medium, Picture):
        return medium.image.size
    return medium.frames.shape[2], medium.frames.shape[1]
