"""Video files for tests, encoded here with PyAV."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

ONE, UNIT = 1 << 16, 1 << 30  # 1.0 in the number formats of a display matrix
QUARTERS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise


def brightening(index: int, count: int, size: tuple[int, int]) -> np.ndarray:
    """Black at first, white at last."""
    return np.full((size[1], size[0], 3), round(255 * index / max(1, count - 1)), np.uint8)


def film(
    path: Path,
    count: int = 60,
    *,
    rate: int = 10,
    times: Sequence[float] | None = None,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    gop: int = 12,
    draw: Callable[[int, int, tuple[int, int]], np.ndarray] = brightening,
    options: dict[str, str] | None = None,
    stream_options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
) -> Path:
    """Encode `count` frames, at an even `rate` or at these `times` in seconds."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size = gop
        if stream_options:
            stream.options = stream_options
        elif codec == "libx264":
            stream.options = {"x264-params": "scenecut=0"}  # key frames where the group of pictures ends, nowhere else
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(draw(index, count, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[index] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def matrix(path: Path, values: tuple[int, int, int, int]) -> Path:
    """Write (a, b, c, d) into the track header of an MP4, as a phone does that was held sideways."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tkhd") + 4
    at = header + (52 if data[header] == 1 else 40)
    a, b, c, d = (ONE * value for value in values)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, UNIT)
    path.write_bytes(data)
    return path


def sound(path: Path) -> Path:
    """Half a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        for index in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 44100, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def brightness(frames: np.ndarray) -> list[float]:
    """Mean of each frame, 0 to 1."""
    return (frames.mean(axis=(1, 2, 3)) / 255).tolist()


def encoded(path, *frames, codec="libx264", rate=10, pixels="yuv420p", options=None, **settings):
    """A film of these frames, (height, width, 3) or PyAV's own, with settings of its codec."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        for number, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                frame = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if not number:
                stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pixels
                stream.options = options or {}
                for name, value in settings.items():
                    setattr(stream.codec_context, name, value)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
