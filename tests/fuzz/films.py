"""Damaged videos, read as `foveate generate FILE` reads them."""

import tempfile
import warnings
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np

from foveate.video import read
from tests.films import film
from tests.fuzz.judging import Case
from tests.fuzz.mutating import damaged, odd_number

CODECS = {
    "mp4": ("libx264", "mpeg4"),
    "mov": ("libx264",),
    "mkv": ("libx264", "mjpeg"),
    "avi": ("mpeg4", "libx264"),
    "webm": ("libvpx",),
    "ts": ("libx264",),
}
BITEXACT = {"fflags": "+bitexact"}  # else Matroska's files have random numbers in them


@cache
def sound() -> tuple[tuple[str, bytes], ...]:
    """Videos that nothing is wrong with: the ending of each, and its bytes."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for ending, codecs in CODECS.items():
            for codec in codecs:
                for count in (1, 12):
                    path = Path(folder) / f"film.{ending}"
                    files.append((ending, _encoded(path, codec, count)))
    return tuple(files)


def _encoded(path: Path, codec: str, count: int) -> bytes:
    if codec == "mjpeg":
        return _jpegs(path, count)
    return film(path, count, size=(32, 24), codec=codec, gop=4, options=BITEXACT).read_bytes()


def _jpegs(path: Path, count: int) -> bytes:
    """A film of JPEGs, which want a pixel format of their own."""
    with av.open(str(path), "w", options=BITEXACT) as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuvj420p"
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), index * 20, np.uint8), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuvj420p")))
        container.mux(stream.encode())
    return path.read_bytes()


def case(rng: Random, folder: Path) -> Case:
    """A video, damaged, of which some frames are asked for."""
    ending, data = rng.choice(sound())
    others = [other for _, other in rng.choices(sound(), k=2)]
    if rng.random() < 0.9:
        data = damaged(rng, data, others)
    path = folder / f"film.{rng.choice((ending, ending, 'mp4', 'mkv'))}"
    path.write_bytes(data)
    asked: dict[str, Any] = rng.choice(({}, {"frames": 4}, {"fps": 3.0}, {"frames": 2, "fps": 1.0}))
    if rng.random() < 0.2:
        name = rng.choice(("frames", "fps", "start", "end"))
        asked = asked | {name: odd_number(rng)}
    return Case(f"{path.name} of {len(data)} bytes, with {asked}", lambda: _read(path, asked))


def _read(path: Path, asked: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a note that a part is missing
        clip = read(path, **asked)
    assert len(clip.frames) == len(clip.seconds) > 0
