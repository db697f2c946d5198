"""Damaged videos, read as `foveate generate FILE` reads them."""

import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from foveate.video import read
from tests.films import film
from tests.fuzz.judging import Case
from tests.fuzz.mutating import NUMBERS, damaged, short

CODECS = {
    "mp4": ("libx264", "mpeg4"),
    "mov": ("libx264",),
    "mkv": ("libx264", "mjpeg"),
    "avi": ("mpeg4", "libx264"),
    "webm": ("libvpx",),
    "ts": ("libx264",),
}
BITEXACT = {"fflags": "+bitexact"}  # else Matroska's files have random numbers in them
ASKED = ({}, {"frames": 4}, {"fps": 3.0}, {"frames": 2, "fps": 1.0})


@cache
def sound() -> tuple[tuple[str, bytes], ...]:
    """Videos that nothing is wrong with: the ending of each, and its bytes."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for ending, codecs in CODECS.items():
            for codec in codecs:
                for count in (1, 12):
                    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                    path = Path(folder) / f"film.{ending}"
                    film(path, count, size=(32, 24), codec=codec, gop=4, options=BITEXACT, pixels=pixels)
                    files.append((ending, path.read_bytes()))
    return tuple(files)


def cases() -> list[st.SearchStrategy[Case]]:
    files = sound()
    return [_cases([file for file in files if file[0] == ending], files) for ending in CODECS]


@st.composite
def _cases(draw: st.DrawFn, files: Sequence[tuple[str, bytes]], others: Sequence[tuple[str, bytes]]) -> Case:
    """A video of one format, damaged, of which some frames are asked for."""
    ending, data = draw(st.sampled_from(files))
    data = draw(damaged(data, [other for _, other in others]))
    name = f"film.{draw(st.sampled_from((ending, ending, 'mp4', 'mkv')))}"
    asked: dict[str, Any] = draw(st.sampled_from(ASKED))
    if draw(st.integers(0, 4)) == 4:
        asked = asked | {draw(st.sampled_from(("frames", "fps", "start", "end"))): draw(NUMBERS)}
    return Case(
        f"{name} of {len(data)} bytes, with {short(asked)}",
        lambda folder: _read(folder / name, asked),
        lambda folder: (folder / name).write_bytes(data),
    )


def _read(path: Path, asked: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a note that a part is missing
        clip = read(path, **asked)
    assert len(clip.frames) == len(clip.seconds) > 0
