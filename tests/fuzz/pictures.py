"""Damaged pictures, read as `foveate generate FILE` reads them."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random

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
PNG_START = 8  # bytes of its signature


@cache
def sound() -> tuple[tuple[str, bytes], ...]:
    """Pictures that nothing is wrong with: the format of each, and its bytes."""
    files = []
    for form, modes in MODES.items():
        for mode in modes:
            for number, size in enumerate(SIDES):
                files.append((form, _encoded(form, mode, size, number)))
    files += [("GIF", _animation("GIF")), ("WEBP", _animation("WEBP")), ("PNG", _animation("PNG"))]
    for turn in range(1, 9):
        files.append(("JPEG", _turned(turn)))
    return tuple(files)


def _drawn(mode: str, size: tuple[int, int], number: int) -> Image.Image:
    """A picture of this mode that is not all of one colour."""
    noise = Random(number).randbytes(size[0] * size[1])
    grey = Image.frombytes("L", size, noise)
    if mode in ("I", "I;16"):
        return grey.convert("I").point(lambda value: value * 257).convert(mode)
    if mode == "F":
        return grey.convert("F").point(lambda value: value * (1 / 255))
    if mode == "LA":
        return Image.merge("LA", (grey, grey))
    if mode == "LAB":
        return Image.merge("LAB", (grey, grey, grey))
    return grey.convert("RGB").convert(mode)


def _encoded(form: str, mode: str, size: tuple[int, int], number: int) -> bytes:
    options = {"compression": ("raw", "tiff_lzw", "tiff_deflate", "packbits")[number]} if form == "TIFF" else {}
    if mode in ("LAB", "F", "I"):
        options = {}
    _drawn(mode, size, number).save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def _animation(form: str) -> bytes:
    frames = [_drawn("RGB", (20, 12), number) for number in range(4)]
    frames[0].save(file := io.BytesIO(), form, save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def _turned(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    _drawn("RGB", (24, 10), turn).save(file := io.BytesIO(), "JPEG", exif=exif)
    return file.getvalue()


def case(rng: Random, folder: Path) -> Case:
    """A picture, damaged, under the ending of its format or another."""
    form, data = rng.choice(sound())
    others = [other for _, other in rng.choices(sound(), k=3)]
    how = "damaged"
    if form == "PNG" and rng.random() < 0.6:
        how, data = "a chunk changed, its checksum right", _chunk_changed(rng, data)
    if form == "BMP" and rng.random() < 0.3:
        how, data = "another size", _sized(rng, data)
    if how == "damaged":
        data = damaged(rng, data, others)
    ending = rng.choice((form.lower(), form.lower(), "png", "jpg", "gif", ""))
    path = folder / f"picture.{ending}"
    path.write_bytes(data)
    return Case(f"{form} of {len(data)} bytes as {path.name}, {how}", lambda: load_picture(path))


def _chunk_changed(rng: Random, data: bytes) -> bytes:
    """A PNG with damage inside a chunk whose checksum is made to fit: else readers stop there at once."""
    chunks, at = [], PNG_START
    while at + 8 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    chosen = rng.randrange(len(chunks))
    kind, content = chunks[chosen]
    if kind == b"IHDR" and rng.random() < 0.5:
        sides = [rng.choice((1, 40, 2000, 20_000, *EDGES)) for _ in range(2)]
        content = struct.pack(">II", *sides) + content[8:]
    elif rng.random() < 0.2:
        kind = rng.choice((b"tRNS", b"PLTE", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"fdAT", b"IDAT", b"IEND", b"gAMA"))
    else:
        content = damaged(rng, content)
    chunks[chosen] = kind, content
    return data[:PNG_START] + b"".join(_chunk(*chunk) for chunk in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _sized(rng: Random, data: bytes) -> bytes:
    """A BMP whose header says another width or height."""
    sides = [rng.choice((1, 40, 2000, 20_000, -1, -40, 2**31 - 1, -(2**31))) for _ in range(2)]
    return data[:18] + struct.pack("<ii", *sides) + data[26:]
