"""Any picture through any door in any place: the same pixels and notes, or the same refusal."""

import base64
import io
import json
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from hypothesis import given, strategies as st
from PIL import Image

from foveate.ask.conversation import Conversation
from foveate.ask.media import Picture, read_media
from foveate.errors import InputError
from foveate.runs.samples import samples_in
from foveate.video import Clip

KINDS = {
    "RGB": ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"),
    "RGBA": ("PNG", "WEBP", "TIFF"),
    "L": ("PNG", "JPEG", "TIFF"),
    "P": ("PNG", "GIF"),
    "CMYK": ("JPEG", "TIFF"),
    "I;16": ("PNG", "TIFF"),
}
MOVING = ("PNG", "WEBP", "TIFF", "GIF")


@st.composite
def files(draw):
    """The bytes of a picture: turned or not, still or moving, whole or damaged."""
    mode = draw(st.sampled_from(sorted(KINDS)))
    kind = draw(st.sampled_from(KINDS[mode]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))

    def picture():
        if mode == "I;16":
            return Image.fromarray(
                rng.integers(0, draw(st.sampled_from([300, 4096, 65536])), (height, width), np.uint16)
            )
        colours = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
        return colours if mode == "RGBA" else colours.convert("RGB").convert(mode)

    options = {}
    if kind in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        options["exif"] = exif
    if kind in MOVING and mode != "I;16" and draw(st.booleans()):
        options |= {"save_all": True, "append_images": [picture()]}
    picture().save(buffer := io.BytesIO(), kind, **options)
    data = buffer.getvalue()
    return data[: draw(st.integers(1, len(data)))] if draw(st.integers(0, 4)) == 0 else data


def url(data):
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


FILE_DOORS = {"path": lambda path: path, "text": str, "file URL": Path.as_uri}
DOORS = {
    **FILE_DOORS,
    "data URL": lambda path: url(path.read_bytes()),
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
    "PIL": Image.open,
}


def said(**message):
    (medium,) = Conversation.of([{"role": "user", "content": "What?", **message}]).media
    return medium


def in_part(kind, key):
    return lambda source: said(content=[{"type": kind, key: source}])


def in_row(source, path):
    rows = path.with_name("rows.jsonl")
    rows.write_text(json.dumps({"image": str(source), "question": "What?"}) + "\n")
    (row,) = samples_in(rows).read()
    return read_media(row.media)[0]


PLACES = {
    "alone": lambda source: read_media(source)[0],
    "in a list": lambda source: read_media([source])[0],
    "frame": lambda source: read_media([[source]])[0],
    "frame in a part": in_part("video", "video"),
    "image": in_part("image", "image"),
    "image path": in_part("image", "path"),
    "image url": in_part("image", "url"),
    "image_url": lambda source: said(content=[{"type": "image_url", "image_url": {"url": source}}]),
    "images": lambda source: said(images=[source]),
}


def seen(read, path):
    """What a door shows: its pixels and note, or its refusal, without the file's name."""
    try:
        medium = read()
    except InputError as error:
        return str(error).replace(str(path), "the picture")
    note = (medium.note or "").replace(str(path), "the picture")
    if isinstance(medium, Clip):
        return medium.frames[0].shape, medium.frames[0].tobytes(), note
    assert isinstance(medium, Picture)
    return np.asarray(medium.image).shape, medium.image.tobytes(), note


@given(data=files(), door=st.sampled_from(sorted(DOORS)), place=st.sampled_from(sorted(PLACES)))
def test_a_picture_shows_the_same_through_every_door_in_every_place(tmp_path_factory, data, door, place):
    path = tmp_path_factory.mktemp("a") / "picture"
    path.write_bytes(data)
    expected = seen(lambda: read_media(path)[0], path)
    try:
        with warnings.catch_warnings(action="ignore"):
            source = DOORS[door](path)
    except (OSError, SyntaxError, ValueError):  # Pillow itself opens no such file
        assert isinstance(expected, str)
        return
    with source if hasattr(source, "close") else nullcontext():
        shown = [source] if place == "frame in a part" else source
        assert seen(lambda: PLACES[place](shown), path) == expected
    assert seen(lambda: in_row(FILE_DOORS.get(door, str)(path), path), path) == expected
    if not isinstance(expected, str):
        shape, pixels, _ = expected
        array = np.frombuffer(pixels, np.uint8).reshape(shape)
        source = [array] if place == "frame in a part" else array
        assert seen(lambda: PLACES[place](source), path) == (shape, pixels, "")
        bare = base64.b64encode(data).decode()
        assert seen(lambda: said(images=[bare]), path) == expected
