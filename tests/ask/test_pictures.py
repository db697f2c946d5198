"""Picture files of every odd kind: read right, or refused by name with what to do."""

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from foveate.ask import media
from foveate.ask.media import BYTES, read_picture
from foveate.errors import InputError
from foveate.plain import memory


def pixel(path, at=(0, 0)):
    return read_picture(path).image.getpixel(at)


def noise(size=(64, 48)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def test_a_plain_picture_comes_through_untouched(tmp_path):
    original = noise()
    original.save(path := tmp_path / "plain.png")
    read = read_picture(path)
    assert (np.asarray(read.image) == np.asarray(original)).all()
    assert (read.image.mode, read.note, read.path) == ("RGB", None, path)


@pytest.mark.parametrize("content", [b"", b"hello, world", b"%PDF-1.7 ...", b"\x00" * 400, b"<svg></svg>"])
def test_what_is_no_picture_is_refused(tmp_path, content):
    (path := tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(InputError, match="photo"):
        read_picture(path)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "webp", "bmp", "flipped"])
def test_a_truncated_file_and_a_damaged_checksum_are_refused(tmp_path, kind):
    noise().save(path := tmp_path / f"cut.{kind.replace('flipped', 'png')}")
    whole = path.read_bytes()
    half = len(whole) // 2
    flipped = bytes((whole[half] ^ 0xFF,)) + whole[half + 1 :]
    path.write_bytes(whole[:half] + flipped * (kind == "flipped"))
    with pytest.raises(InputError, match=r"damaged|is not a picture"):
        read_picture(path)


def png_claiming(width, height):
    """A PNG whose header claims a size that its few bytes of data do not have."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\x00" * 1000)) + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_without_unpacking_it(tmp_path):
    (path := tmp_path / "bomb.png").write_bytes(png_claiming(60_000, 60_000))
    with pytest.raises(InputError, match="unpacks"):
        read_picture(path)


def test_a_large_photograph_below_the_limit_is_read_without_a_warning(tmp_path, monkeypatch):
    noise(size=(40, 40)).save(path := tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 1600 pixels: Pillow warns between this and twice it
    assert read_picture(path).image.size == (40, 40)  # pytest turns a warning into an error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(InputError, match="1,400"):
        read_picture(path)


def test_of_an_animation_the_first_frame_is_read_and_a_note_says_so(tmp_path):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    for kind in ("gif", "png", "webp"):
        frames[0].save(path := tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:], lossless=True)
        read = read_picture(path)
        assert read.image.getpixel((3, 3)) == (255, 0, 0)
        assert f"moving.{kind} has 3 frames; only the first" in read.note


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path := tmp_path / "print.tif")
    assert pixel(path) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_shades(tmp_path, kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    Image.fromarray(ramp).save(path := tmp_path / f"scan.{kind}")
    shades = np.asarray(read_picture(path).image)[0, :, 0]
    assert (shades == np.arange(256)).all()  # Pillow's own conversion would clip all but one to white


TWELVE = np.linspace(0, 4095, 256).astype(np.uint16)[None].repeat(4, axis=0)


def packed(bits, values):
    """A TIFF of one strip with values of so many bits each."""
    text = "".join(f"{value:0{bits}b}" for value in values.ravel())
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", key, 4, 1, v) for key, v in entries.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + ifd + bytes(4)


def deep(kind, **options):
    Image.fromarray(TWELVE).save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def significant(bits, data):
    """The same PNG with a chunk that says how many bits of a value count."""
    chunk = b"sBIT" + bytes([bits])
    return data[:33] + struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


def twelve_bit_jp2():
    """A JPEG 2000 of 12 bits: of one of 16 bits, with values that lie as far from the middle."""
    Image.fromarray(TWELVE + 30720).save(file := io.BytesIO(), "JPEG2000", no_jp2=True)
    data = bytearray(file.getvalue())
    assert data[42] == 15
    data[42] = 11
    return bytes(data)


NAMED = {
    "sbit.png": significant(12, deep("PNG")),
    "packed.tif": packed(12, TWELVE),
    "most.tif": deep("TIFF", tiffinfo={281: 4095}),
    "largest.tif": deep("TIFF", tiffinfo={341: 4000}),
    "precise.j2k": twelve_bit_jp2(),
}


@pytest.mark.parametrize("name", [*NAMED, "plain.png", "plain.tif", "plain.jp2", "whole.tif"])
def test_twelve_bit_grey_is_not_black(tmp_path, name):
    plain = {"png": "PNG", "tif": "TIFF", "jp2": "JPEG2000"}
    data = NAMED.get(name) or deep(plain[name.split(".")[1]])
    if name == "whole.tif":
        Image.fromarray(TWELVE.astype(np.int32)).save(file := io.BytesIO(), "TIFF")
        data = file.getvalue()
    (path := tmp_path / name).write_bytes(data)
    read = read_picture(path)
    shades = np.asarray(read.image)[0, :, 0].astype(int)
    assert np.abs(shades - np.arange(256)).max() <= 1
    if name in NAMED:
        assert read.note is None
    else:
        assert f"{name} has grey values up to 4095 of 65535: they are read as 12 bits" in read.note


def test_a_dark_picture_whose_file_says_sixteen_bits_stays_dark(tmp_path):
    for name, data in (("a.png", significant(16, deep("PNG"))), ("a.tif", deep("TIFF", tiffinfo={281: 65535}))):
        (path := tmp_path / name).write_bytes(data)
        assert (np.asarray(read_picture(path).image).max(), read_picture(path).note) == (16, None)


def test_values_of_eight_bits_in_a_file_of_more_are_those_values():
    read = read_picture(Image.fromarray(np.arange(256, dtype=np.int32)[None]))
    assert np.asarray(read.image)[0, :, 0].tolist() == list(range(256))
    assert "read as 8 bits" in read.note


def test_deep_colours_that_come_out_black_are_noted(tmp_path):
    rows = b"".join(b"\0" + np.stack([row] * 3, axis=-1).astype(">u2").tobytes() for row in TWELVE)
    head = struct.pack(">IIBBBBB", 256, 4, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    (path := tmp_path / "deep.png").write_bytes(data)
    assert "uses few of them: it is nearly black" in read_picture(path).note


def test_float_grey_is_read_from_zero_to_one(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)).save(path := tmp_path / "depth.tif")
    assert np.asarray(read_picture(path).image)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("value", [-1, 70_000])
def test_grey_values_that_are_no_picture_are_refused(tmp_path, value):
    Image.fromarray(np.full((4, 4), value, dtype=np.int32)).save(path := tmp_path / "heights.tif")
    with pytest.raises(InputError, match=rf"heights\.tif holds grey values from {value} to {value}"):
        read_picture(path)


def test_transparency_shows_white_and_not_the_colour_hidden_under_it(tmp_path):
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(path := tmp_path / "logo.png")
    assert pixel(path) == (255, 255, 255)
    Image.new("LA", (8, 8), (0, 128)).save(path := tmp_path / "half.png")
    assert pixel(path) == (127, 127, 127)


def test_a_palette_with_and_without_transparency_is_read(tmp_path):
    flat = Image.new("P", (8, 8), 1)
    flat.putpalette([0, 0, 0, 10, 200, 30])
    flat.save(path := tmp_path / "palette.png")
    assert pixel(path) == (10, 200, 30)
    flat.save(path := tmp_path / "clear.png", transparency=1)
    assert pixel(path) == (255, 255, 255)


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    photo = Image.new("RGB", (60, 30), "black")
    photo.paste("white", (0, 0, 60, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    photo.save(path := tmp_path / "phone.jpg", exif=exif, quality=95)
    upright = read_picture(path).image
    assert upright.size == (30, 60)
    assert upright.getpixel((27, 30))[0] > 200  # the bright top edge is on the right now
    assert upright.getpixel((3, 30))[0] < 50


def test_the_animated_first_frame_note_is_not_given_for_a_phones_two_view_jpeg(tmp_path):
    views = [Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")]
    views[0].save(path := tmp_path / "phone.mpo", format="MPO", save_all=True, append_images=views[1:])
    read = read_picture(path)
    assert read.note is None
    assert read.image.getpixel((8, 8))[0] > 200


def test_a_png_that_cannot_be_opened_is_said_to_be_damaged(tmp_path):
    (path := tmp_path / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for source in (path, path.read_bytes()):
        with pytest.raises(InputError, match="damaged"):
            read_picture(source)


def test_threads_that_read_at_the_same_time_leave_pillow_and_the_filters_of_warnings_as_they_were(
    tmp_path, monkeypatch
):
    noise().save(path := tmp_path / "noise.png")
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    before, shown, refused = list(warnings.filters), media._as_shown, []

    def interleaved(*given):
        name = threading.current_thread().name
        (refused if ImageFile.LOAD_TRUNCATED_IMAGES else []).append(name)
        entered.set()
        inside.wait()
        if name == "last":
            first.join(10)
        return shown(*given)

    monkeypatch.setattr(media, "_as_shown", interleaved)
    entered, inside = threading.Event(), threading.Barrier(2, timeout=10)
    first, last = (threading.Thread(target=read_picture, args=(path,), name=name) for name in ("first", "last"))
    first.start()
    assert entered.wait(10)
    last.start()
    last.join(20)
    assert refused == []
    assert ImageFile.LOAD_TRUNCATED_IMAGES
    assert warnings.filters == before


PEAK = """
import resource, sys
from pathlib import Path
from foveate.ask.media import read_picture
small, *large = map(Path, sys.argv[1:])
read_picture(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in large:
    read_picture(path)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.further
def test_large_pictures_take_no_more_memory_than_is_said(tmp_path):
    noise().save(small := tmp_path / "small.tif", compression="tiff_lzw")
    large = [tmp_path / f"{mode}.tif" for mode in ("I;16", "F", "RGBA", "RGB")]
    for path in large:
        Image.new(path.stem, (2000, 2000)).save(path, compression="tiff_lzw")
    done = subprocess.run([sys.executable, "-c", PEAK, small, *large], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2000**2 * BYTES


def test_what_takes_more_memory_than_there_is_is_refused_by_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2.0**30)
    (path := tmp_path / "huge.png").write_bytes(png_claiming(12_000, 12_000))
    with pytest.raises(InputError) as refused:
        read_picture(path)
    assert str(refused.value) == (
        f"The 12000 x 12000 pixels of {path} take about 1.9 GiB of memory, and 1.0 GiB are available here. "
        "Scale it down first."
    )
    noise().save(path := tmp_path / "plain.png")
    assert read_picture(path).image.size == (64, 48)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InputError, match="picture"):
        read_picture(Image.new("RGB", (0, 5)))


def test_bands_of_a_picture_are_what_the_whole_would_give(monkeypatch):
    values = np.random.default_rng(0).integers(0, 256, (50, 30, 4), dtype=np.uint8)
    deep = np.random.default_rng(1).integers(0, 2**16, (50, 30), dtype=np.uint16)
    pictures = [Image.fromarray(values), Image.fromarray(values[..., :2]), Image.fromarray(deep)]
    wholes = [read_picture(picture).image.tobytes() for picture in pictures]
    monkeypatch.setattr("foveate.ask.media.BAND", 100)  # three rows and a bit
    assert [read_picture(picture).image.tobytes() for picture in pictures] == wholes
    white = Image.new("RGBA", (30, 50), "white")
    assert wholes[0] == Image.alpha_composite(white, pictures[0]).convert("RGB").tobytes()


def test_drawings_that_another_program_would_have_to_draw_are_refused(tmp_path):
    noise().save(path := tmp_path / "drawing.eps")
    path = path.rename(tmp_path / "photo.png")
    with pytest.raises(InputError, match="drawing"):
        read_picture(path)


def test_a_pipe_is_said_to_be_one_and_not_waited_for(tmp_path):
    os.mkfifo(path := tmp_path / "pipe.png")
    with pytest.raises(InputError, match="pipe"):
        read_picture(path)


def test_a_disk_that_fails_is_not_a_damaged_picture(tmp_path, monkeypatch):
    noise().save(path := tmp_path / "plain.png")

    class Failing(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr("foveate.ask.media.open_readable", lambda _: Failing())
    with pytest.raises(InputError, match="Input"):
        read_picture(path)


@pytest.mark.parametrize("name", ["two\nlines.png", b"caf\xe9.png".decode(errors="surrogateescape")])
def test_whatever_a_name_holds_a_refusal_is_one_line_that_prints(tmp_path, name):
    (path := tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match="picture") as refused:
        read_picture(path)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("size", [(1, 1_000_001), (1_000_001, 1)])
def test_a_side_that_cannot_be_meant_is_refused_by_the_header(tmp_path, size):
    path = tmp_path / "strip.png"
    Image.new("1", size).save(path)
    with pytest.raises(InputError, match=rf"strip\.png claims {size[0]} x {size[1]} pixels: it is damaged"):
        read_picture(path)


def unknown_bmp():
    noise().save(file := io.BytesIO(), "BMP")
    data = bytearray(file.getvalue())
    data[30:34] = struct.pack("<I", 3)  # bitfields, of which these masks are none that are known
    return bytes(data)


def unknown_dds():
    size = struct.pack("<7I", 124, 0x1007, 8, 8, 32, 0, 0) + bytes(44)
    return b"DDS " + size + struct.pack("<2I4s5I", 32, 4, b"ABCD", 0, 0, 0, 0, 0) + bytes(20) + bytes(64)


@pytest.mark.parametrize("data", [unknown_bmp(), unknown_dds()], ids=["bmp", "dds"])
def test_what_pillow_does_not_know_is_asked_to_be_converted(tmp_path, data):
    (path := tmp_path / "rare").write_bytes(data)
    with pytest.raises(InputError, match="Convert"):
        read_picture(path)


P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))
ADOBE = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446))
"""The primaries in XYZ under D50: red, green, blue."""


def profile(primaries=None, gamma=563):
    """An ICC profile (version 2) of these primaries, or of grey; 256 gamma of a curve is 1."""

    def xyz(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, gamma)
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249)), b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test" + bytes(79)}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        for letter, values in zip("rgb", primaries, strict=True):
            tags |= {f"{letter}XYZ".encode(): xyz(values), f"{letter}TRC".encode(): curve}
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    space = b"GRAY" if primaries is None else b"RGB "
    head = b"lcms" + struct.pack(">I", 0x02100000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    whole = head.ljust(124, b"\0") + table + body
    return struct.pack(">I", len(whole) + 4) + whole


def in_srgb(values, primaries, gamma=563 / 256):
    """Levels of sRGB of colours under a profile, by the formulas of IEC 61966-2-1."""
    linear = (np.asarray(values) / 255) ** gamma @ np.array(primaries)
    srgb = np.array([(0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)])
    shares = np.clip(linear @ np.linalg.inv(srgb), 0, 1)
    return 255 * np.where(shares <= 0.0031308, 12.92 * shares, 1.055 * shares ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("primaries", [P3, ADOBE], ids=["p3", "adobe"])
def test_colours_are_shown_as_their_profile_means_them(tmp_path, kind, primaries):
    for colour in ((200, 120, 60), (60, 160, 90), (128, 128, 128)):
        picture = Image.new("RGB", (16, 16), colour)
        picture.save(path := tmp_path / f"wide.{kind}", icc_profile=profile(primaries), quality=100)
        assert np.abs(np.array(pixel(path)) - in_srgb(colour, primaries)).max() <= 3
        assert read_picture(path).note is None


def test_profiles_count_under_transparency_in_palettes_and_in_grey(tmp_path):
    expected = in_srgb((200, 120, 60), ADOBE)
    clear = Image.new("RGBA", (8, 8), (200, 120, 60, 255))
    clear.putpixel((0, 0), (200, 120, 60, 0))
    clear.save(path := tmp_path / "clear.png", icc_profile=profile(ADOBE))
    assert pixel(path) == (255, 255, 255)
    assert np.abs(np.array(pixel(path, (4, 4))) - expected).max() <= 3
    Image.new("RGB", (8, 8), (200, 120, 60)).quantize(4).save(path := tmp_path / "p.png", icc_profile=profile(ADOBE))
    assert np.abs(np.array(pixel(path)) - expected).max() <= 3
    Image.new("L", (8, 8), 100).save(path := tmp_path / "grey.png", icc_profile=profile(gamma=256))
    assert pixel(path) == pytest.approx((168, 168, 168), abs=2)  # 100 / 255 of the light


def test_a_picture_in_srgb_is_not_touched(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    original = noise()
    original.save(path := tmp_path / "usual.png", icc_profile=srgb)
    read = read_picture(path)
    assert read.image.tobytes() == original.tobytes()
    assert read.note is None


@pytest.mark.parametrize("data", [b"no profile", profile(P3)[:200], profile()], ids=["text", "cut", "of grey"])
def test_a_broken_profile_is_noted_and_the_picture_read(tmp_path, data):
    original = noise()
    original.save(path := tmp_path / "odd.png", icc_profile=data)
    read = read_picture(path)
    assert read.image.tobytes() == original.tobytes()
    assert "odd.png has a colour profile that cannot be used" in read.note
    assert "read as sRGB" in read.note
