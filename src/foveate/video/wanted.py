"""`FramesWanted`: which frames to read from a video, and at which times."""

from dataclasses import dataclass
from math import ceil
from typing import Annotated

from annotated_types import Ge, Gt

from foveate.core.fields import check
from foveate.errors import InputError, SettingError
from foveate.video.survey import Survey

FRAMES = 32
MOST = 768  # maximum frames if only `fps` is given
HAIR = 1e-6  # seconds; tolerance for rounding of times


@dataclass(frozen=True, slots=True)
class FramesWanted:
    """The frames to read from a video; None for defaults. See `foveate.video.read` for the fields.

    Raises:
        SettingError: If a value is not a number, or is out of range.
    """

    frames: Annotated[int, Ge(1)] | None = None
    fps: Annotated[float, Gt(0)] | None = None
    start: Annotated[float, Ge(0)] | None = None
    end: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        check(self, "A video")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise SettingError(f"end must be later than start; got start={self.start}, end={self.end}.")

    @property
    def asked(self) -> bool:
        """Whether `frames` or `fps` is given. If so, a GIF is read as a video."""
        return self.frames is not None or self.fps is not None

    def part(self, contents: Survey, name: str) -> tuple[float, float]:
        """Return the start and end of the requested part, in seconds.

        Raises:
            InputError: If the video has no frame in it.
        """
        first = max(contents.begin, self.start or 0.0)
        last = min(contents.end, self.end or contents.end)
        if first >= last:
            raise InputError(
                f"{name} has video from {contents.begin:.2f} to {contents.end:.2f} s, and none from "
                f"start={self.start or 0:g} to end={self.end or contents.end:g} s. Set another start or end."
            )
        return first, last

    def times(self, contents: Survey, part: tuple[float, float], name: str) -> list[float]:
        """Return the ascending times, in seconds, at which to take the visible frame of this part.

        If every frame of the part is wanted: their start times. With `fps` and no lower limit: every 1 / fps
        seconds from the start. Otherwise: the middles of equal parts.

        Raises:
            SettingError: If `fps` alone gives more than `MOST` frames.
        """
        first, last = part
        length = last - first
        inside = [time for time in contents.times or () if first - HAIR <= time < last - HAIR]
        available = len(inside) or max(1, round(length * contents.rate))
        if self.fps is None:
            count = min(available, self.frames or FRAMES)
            due = 0
        else:
            due = max(1, ceil(length * self.fps - HAIR))  # one at time 0, so 2.5 s at 1 fps give 3
            count = min(available, due, self.frames or available)
            if self.frames is None and count > MOST:
                raise SettingError(
                    f"{self.fps:g} frames per second of {name} are {count} frames; more than {MOST} are read only on "
                    "request. Set frames=… to the maximum you want."
                )
        if count == len(inside):
            return inside
        if self.fps is not None and count == due:
            return [first + number / self.fps for number in range(count)]
        return [first + length * (number + 0.5) / count for number in range(count)]
