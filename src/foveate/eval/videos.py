"""Frames of a video file, evenly spread."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import InputError, UnsupportedError

__all__ = ["Clip", "frames"]


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Some frames of a video.

    Attributes:
        frames: (frames, height, width, 3) uint8, RGB.
        seconds: When each is shown, from the file's start.
        rate: Frames a second of the file.
        length: Frames of the file.
    """

    frames: NDArray[np.uint8]
    seconds: tuple[float, ...]
    rate: float
    length: int

    def metadata(self) -> Mapping[str, Any]:
        """What transformers' video processors want to know of frames that are sampled already."""
        return {
            "fps": self.rate,
            "duration": self.length / self.rate,
            "total_num_frames": self.length,
            "frames_indices": [round(second * self.rate) for second in self.seconds],
        }


def frames(path: str | Path, count: int, start: float | None = None, end: float | None = None) -> Clip:
    """At most `count` frames of a video, the middles of as many equal parts.

    Args:
        path: A video file.
        count: 1 or more.
        start, end: The part that is meant, in seconds; None is the file's.

    Raises:
        InputError: If the file cannot be read as a video.
        UnsupportedError: If PyAV is missing.
    """
    try:
        import av
    except ImportError as error:
        raise UnsupportedError('Videos are read with PyAV: pip install "foveate[eval]" -c constraints.txt.') from error
    try:
        with av.open(str(path)) as container:
            return _spread(container, count, start, end)
    except (av.error.FFmpegError, OSError, IndexError) as error:
        raise InputError(f"{path} cannot be read as a video: {error}. Fetch or export it again.") from error


def _spread(container: Any, count: int, start: float | None, end: float | None) -> Clip:
    stream = container.streams.video[0]
    rate = float(stream.average_rate or 1)
    whole = float(stream.duration * stream.time_base) if stream.duration else float(container.duration or 0) / 1e6
    first, last = start or 0.0, whole if end is None else min(end, whole)
    length = stream.frames or max(1, round(whole * rate))
    count = max(1, min(count, round((last - first) * rate) or 1))
    wanted = [first + (last - first) * (at + 0.5) / count for at in range(count)]
    found = [_at(container, stream, second) for second in wanted]
    return Clip(np.stack([image for image, _ in found]), tuple(second for _, second in found), rate, length)


def _at(container: Any, stream: Any, second: float) -> tuple[NDArray[np.uint8], float]:
    """The frame on show at a time, and when it came; the last one for a time behind the end."""
    container.seek(int(second / stream.time_base), stream=stream)  # to the key frame before it
    shown = None
    for frame in container.decode(stream):
        if shown is not None and frame.time > second:
            break
        shown = frame
    if shown is None:
        raise IndexError("no frame could be decoded")
    return shown.to_ndarray(format="rgb24"), float(shown.time)
