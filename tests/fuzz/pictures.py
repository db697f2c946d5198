"""Damaged pictures, read as `foveate generate FILE` reads them."""

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from foveate.ask.pictures import load_picture
from tests.fuzz.judging import Case
from tests.fuzz.mutating import EDGES, damaged

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "GIF": ("1", "L", "P", "RGB"),
    "WEBP": ("RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "PPM": ("1", "L", "RGB", "I;16"),
}
SIDES = ((1, 1), (7, 5), (33, 20), (64, 64))
PACKED = ("raw", "tiff_lzw", "tiff_deflate", "packbits")
PNG_START = 8  # bytes of its signature
CHUNKS = (b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fdAT", b"IDAT", b"IEND", b"gAMA")


@cache
def sound() -> tuple[tuple[str, bytes], ...]:
    """Pictures that nothing is wrong with: the format of each, and its bytes."""
    files = []
    for form, modes in MODES.items():
        for mode in modes:
            for size, packing in zip(SIDES, PACKED, strict=True):
                plain = form != "TIFF" or mode in ("LAB", "F", "I")
                files.append((form, _saved(_drawn(mode, size), form, **{} if plain else {"compression": packing})))
    frames = [_drawn("RGB", (20, 12), number) for number in range(4)]
    for form in ("GIF", "WEBP", "PNG"):
        files.append((form, _saved(frames[0], form, save_all=True, append_images=frames[1:], duration=40)))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        files.append(("JPEG", _saved(_drawn("RGB", (24, 10)), "JPEG", exif=exif)))
    return tuple(files)


def _drawn(mode: str, size: tuple[int, int], number: int = 0) -> Image.Image:
    """A picture of this mode that is not all of one colour."""
    grey = Image.fromarray(np.random.default_rng(number).integers(0, 256, size[::-1], np.uint8))
    if mode in ("I", "I;16"):
        return grey.convert("I").point(lambda value: value * 257).convert(mode)
    if mode == "F":
        return grey.convert("F").point(lambda value: value * (1 / 255))
    if mode in ("LA", "LAB"):
        return Image.merge(mode, [grey] * len(mode))
    return grey.convert("RGB").convert(mode)


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    picture.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def cases() -> list[st.SearchStrategy[Case]]:
    """A strategy for each format, and for what only knowledge of a format reaches."""
    harms = [("PNG", _chunk), ("PNG", _large), ("BMP", _size), *((form, _bytes) for form in MODES)]
    return [_cases(form, harm) for form, harm in harms]


@st.composite
def _cases(draw: st.DrawFn, form: str, harm: Callable[[st.DrawFn, bytes], bytes]) -> Case:
    """A picture, damaged, under the ending of its format or another."""
    data = harm(draw, draw(st.sampled_from([data for other, data in sound() if other == form])))
    name = f"picture.{draw(st.sampled_from((form.lower(), form.lower(), 'png', 'jpg', 'gif', '')))}"
    return Case(
        f"{form} of {len(data)} bytes as {name}",
        lambda folder: load_picture(folder / name),
        lambda folder: (folder / name).write_bytes(data),
    )


def _bytes(draw: st.DrawFn, data: bytes) -> bytes:
    return draw(damaged(data, [other for _, other in sound()]))


def _large(draw: st.DrawFn, data: bytes) -> bytes:
    """A picture that unpacks to far more than its file."""
    side = st.sampled_from((2000, 20_000))
    return _blank(draw(side), draw(side))


@cache
def _blank(width: int, height: int) -> bytes:
    return _saved(Image.new("1", (width, height)), "PNG")


def _size(draw: st.DrawFn, data: bytes) -> bytes:
    """A BMP whose header says another width or height."""
    side = st.sampled_from((1, 40, 2000, 20_000, -1, -40, 2**31 - 1, -(2**31)))
    return data[:18] + struct.pack("<ii", draw(side), draw(side)) + data[26:]


def _chunk(draw: st.DrawFn, data: bytes) -> bytes:
    """A PNG with damage inside a chunk whose checksum is made to fit: else readers stop there at once."""
    chunks, at = [], PNG_START
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    chosen = draw(st.integers(0, len(chunks) - 1))
    kind, content = chunks[chosen]
    how = draw(st.sampled_from(("size", "content", "content", "kind")))
    if how == "kind":
        kind = draw(st.sampled_from(CHUNKS))
    elif kind == b"IHDR" and how == "size":
        side = st.sampled_from((1, 40, 2000, 20_000, *EDGES))
        content = struct.pack(">II", draw(side), draw(side)) + content[8:]
    else:
        content = draw(damaged(content))
    chunks[chosen] = kind, content
    return data[:PNG_START] + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
