"""Some frames of a video, and when they are shown."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FINE = 1000  # ticks a second: fine enough for the times of frames that come at no steady rate


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """Some frames of a video file.

    Attributes:
        path: The file.
        frames: (frames, height, width, 3) uint8, RGB, upright, square pixels.
        seconds: Start time of each frame, from the start of the file, sound included, as players count. A frame that is
            taken again, because it is still visible at the next step, has that step's time.
        start, end: The part of the video that was read, in seconds.
        rate: Mean frames per second of the file.
        note: A message for the user, such as that the file is damaged; usually None.
        chosen: Whether somebody said how many frames, or which: then no model takes fewer by itself.
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
        """The frames as pictures, for models that read no videos; of blank ones the same picture."""
        if not any(self.frames.strides):
            return [Image.fromarray(np.zeros(self.frames.shape[1:], np.uint8))] * len(self)
        return [Image.fromarray(frame) for frame in self.frames]

    def thinned(self, count: int) -> "Clip":
        """The middles of `count` equal parts of its frames; itself where it has no more."""
        if len(self) <= count:
            return self
        middles = [(2 * part + 1) * len(self) // (2 * count) for part in range(count)]
        seconds = tuple(self.seconds[index] for index in middles)
        note = self.note and f"{self.note} {count} of those read are used."
        return dataclasses.replace(self, frames=self.frames[middles], seconds=seconds, note=note)

    def metadata(self) -> Mapping[str, Any]:
        """What transformers' video processors want to know of frames that are sampled already (`video_metadata`).

        Times count from the start of the part, as if the rest had been cut away.
        """
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
    """Black frames, (count, height, width, 3), that are one byte in memory."""
    return np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (count, height, width, 3), (0, 0, 0, 0))
