"""`Clip`: some frames of a video, with their times."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FINE = 1000  # ticks per second to express the times of frames with a variable rate


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Some frames of a video file.

    Attributes:
        path: The file.
        frames: (frames, height, width, 3) uint8, RGB, upright, square pixels.
        seconds: Start time of each frame, in seconds from the start of the file (including sound), as in a player. A
            frame that is still visible at the next step is repeated with that step's time.
        start, end: The part of the video that was read, in seconds.
        rate: Mean frames per second of the file.
        note: A note for the user, such as that the file is damaged, or None.
        chosen: Whether the user chose the frames or their number. If so, no model's default reduces it.
    """

    path: Path
    frames: NDArray[np.uint8]
    seconds: tuple[float, ...]
    start: float
    end: float
    rate: float
    note: str | None = None
    chosen: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    def images(self) -> list[Image.Image]:
        """Return the frames as images, for models that read no videos. Blank frames share one image."""
        if not any(self.frames.strides):
            return [Image.fromarray(np.zeros(self.frames.shape[1:], np.uint8))] * len(self)
        return [Image.fromarray(frame) for frame in self.frames]

    def thinned(self, count: int) -> "Clip":
        """Return a clip of the middle frames of `count` equal parts, or this clip if it has no more frames.

        10 frames to 3: indices 1, 5, 8.
        """
        if len(self) <= count:
            return self
        middles = [(2 * part + 1) * len(self) // (2 * count) for part in range(count)]
        seconds = tuple(self.seconds[index] for index in middles)
        note = self.note and f"{self.note} {count} of those read are used."
        return dataclasses.replace(self, frames=self.frames[middles], seconds=seconds, note=note)

    def metadata(self) -> Mapping[str, Any]:
        """Return transformers' `video_metadata` for these frames.

        Times count from the start of the part that was read.
        """
        # A frame's index is its time times the rate. If that is not exact within 1 ms, use 1000 ticks per second.
        times = [second - self.start for second in self.seconds]
        steady = all(abs(round(time * self.rate) / self.rate - time) < 1 / FINE for time in times)
        rate: float = self.rate if steady else FINE
        return {
            "fps": rate,
            "duration": self.end - self.start,
            "total_num_frames": max(len(self), round((self.end - self.start) * rate)),
            "frames_indices": [round(time * rate) for time in times],
        }


def blank_frames(count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return black frames, (count, height, width, 3) uint8, that take one byte of memory (all strides are 0)."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (count, height, width, 3), (0, 0, 0, 0))
