"""The rules that pictures have, for films: the same, or a note. The table in docs/guides/video.md names them all."""

import re
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from foveate.ask.media import read_media, read_picture, refuse_thin
from foveate.errors import InputError
from foveate.plain import memory
from foveate.video import read, shape_of
from tests.films import encoded, film

GUIDE = Path(__file__).parents[2] / "docs/guides/video.md"
SIZE = 64, 32
TITLE = Image.new("RGBA", SIZE, (0, 0, 0, 0))
TITLE.paste((0, 0, 0, 255), (0, 0, 20, 20))


def thrice(path, codec, pixels, values, form):
    """Three frames of these values."""
    frames = [av.VideoFrame.from_ndarray(values, format=form) for _ in range(3)]
    return encoded(path, *frames, codec=codec, rate=5, pixels=pixels)


def packed(path, codec, pixels, image, **saved):
    """A film of one frame: the bytes of a picture's file."""
    file = BytesIO()
    image.save(file, {"mjpeg": "JPEG", "png": "PNG"}[codec], **saved)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height, stream.pix_fmt = *image.size, pixels
        stream.encode(av.VideoFrame(*image.size, pixels))
        packet = av.Packet(file.getvalue())
        packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, 5), 0, 0
        packet.duration, packet.is_keyframe = 1, True
        container.mux(packet)
    return path, file.getvalue()


def transparency(folder):
    right = np.asarray(read_picture(TITLE).image)
    for name, codec, pixels in (("a.mov", "png", "rgba"), ("b.mov", "qtrle", "argb"), ("c.mkv", "ffv1", "bgra")):
        clip = read(thrice(folder / name, codec, pixels, np.asarray(TITLE), "rgba"), frames=2)
        assert (clip.frames == right).all()
    (folder / "d.mov").write_bytes(
        thrice(folder / "d.mov", "prores_ks", "yuva444p10le", np.asarray(TITLE), "rgba").read_bytes()
    )
    assert abs(read(folder / "d.mov", frames=2).frames.astype(int) - right).max() < 12


def colour_profile(folder):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path, _ = packed(folder / "a.mov", "png", "rgb24", TITLE.convert("RGB"), icc_profile=profile)
    assert len(read(path)) == 1


def sixteen_bits(folder):
    ramp = np.linspace(0, 65535, 64 * 32).reshape(32, 64).astype(np.uint16)
    right = np.asarray(read_picture(Image.fromarray(ramp)).image)
    clip = read(thrice(folder / "a.mkv", "ffv1", "gray16le", ramp, "gray16le"))
    assert abs(clip.frames[0].astype(int) - right).max() <= 1
    assert clip.note is None


def orientation(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    path, data = packed(folder / "a.avi", "mjpeg", "yuvj420p", TITLE.convert("RGB").resize((64, 48)), exif=exif)
    right = np.asarray(read_picture(data).image)
    assert abs(read(path).frames[0].astype(int) - right).max() < 12


def palettes(folder):
    image = TITLE.convert("RGB").quantize(4)
    path, data = packed(folder / "a.mov", "png", "pal8", image)
    assert (read(path).frames[0] == np.asarray(read_picture(data).image)).all()


def size(folder):
    path = film(folder / "a.mp4", 4, size=(640, 480))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available", lambda: 2.0**20)
        with pytest.raises(InputError, match="take"):
            read(path)
    with pytest.raises(InputError, match="long"):
        refuse_thin(read_media(film(folder / "b.mkv", 2, size=(2048, 8), codec="ffv1"), frames=1)[0])


def animations(folder):
    shades = [Image.new("RGBA", SIZE, (40 * number, 0, 0, 255 if number else 0)) for number in range(4)]
    for name, options in (("a.webp", {"lossless": True}), ("a.gif", {})):
        path = folder / name
        shades[0].save(path, save_all=True, append_images=shades[1:], duration=[100, 200, 300, 400], **options)
        assert "frames" in read_media(path)[0].note
        for source in (path, path.read_bytes()) if name == "a.webp" else (path,):
            (clip,) = read_media(source, frames=9)
            assert clip.frames[:, 0, 0].tolist() == [[255, 255, 255], [40, 0, 0], [80, 0, 0], [120, 0, 0]]
            assert clip.seconds == pytest.approx((0, 0.1, 0.3, 0.6))
        assert shape_of(path, fps=2) == (2, *SIZE[::-1])
    shades[1].save(folder / "still.webp")
    assert not hasattr(read_media(folder / "still.webp", frames=9)[0], "frames")


RULES = {
    "transparency": transparency,
    "a colour profile (ICC), wide colours": colour_profile,
    "16 bits per colour": sixteen_bits,
    "orientation": orientation,
    "palettes": palettes,
    "size": size,
    "animations": animations,
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_of_pictures_and_films_holds(rule, tmp_path):
    RULES[rule](tmp_path)


def test_the_guide_has_every_rule():
    table = GUIDE.read_text(encoding="utf-8").partition("| in a picture |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE) == [*RULES]
