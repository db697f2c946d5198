"""At which times of a video frames are wanted."""

import dataclasses
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from annotated_types import Ge, Gt

from foveate.contract.settings import check
from foveate.errors import InputError, SettingError
from foveate.video.survey import Survey

FRAMES = 32
MOST = 768  # frames that a rate alone may ask for
HAIR = 1e-6  # of a second, for times that went through floats


@dataclass(frozen=True, slots=True)
class FramesWanted:
    """Which frames of a video somebody wants; None where nothing is said. See `foveate.video.read`.

    Raises:
        SettingError: If a number leaves its range, or is none.
    """

    frames: Annotated[int, Ge(1)] | None = None
    fps: Annotated[float, Gt(0)] | None = None
    start: Annotated[float, Ge(0)] | None = None
    end: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        for name, value in check("A video", FramesWanted, dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)
        if self.end is not None and self.end <= (self.start or 0.0):
            raise SettingError(f"end must be later than start; got start={self.start}, end={self.end}.")

    @property
    def asked(self) -> bool:
        """Whether somebody said how many frames, or how many a second: then a GIF is a film."""
        return self.frames is not None or self.fps is not None

    def part(self, contents: Survey, name: str) -> tuple[float, float]:
        """From where to where frames are taken, in seconds.

        Raises:
            InputError: If the film has begun later, or ended before.
        """
        first = max(contents.begin, self.start or 0.0)
        last = min(contents.end, self.end or contents.end)
        if first >= last:
            raise InputError(
                f"{name} has a film from {contents.begin:.2f} to {contents.end:.2f} s, and none from "
                f"start={self.start or 0:g} to end={self.end or contents.end:g} s. Give another part."
            )
        return first, last

    def times(self, contents: Survey, part: tuple[float, float], name: str) -> list[float]:
        """When the wanted frames of this part are on show, ascending.

        Raises:
            SettingError: If a rate alone asks for too many frames.
        """
        first, last = part
        length = last - first
        inside = [time for time in contents.times or () if first - HAIR <= time < last - HAIR]
        available = len(inside) or max(1, round(length * contents.rate))
        if self.fps is None:
            count = min(available, self.frames or FRAMES)
            due = 0
        else:
            due = max(1, ceil(length * self.fps - HAIR))  # the first one comes at once
            count = min(available, due, self.frames or available)
            if self.frames is None and count > MOST:
                raise SettingError(
                    f"{self.fps:g} frames per second of {name} are {count} frames; more than {MOST} are read only on "
                    "request. Set frames=… to the most frames you want."
                )
        if count == len(inside):
            return inside
        if self.fps is not None and count == due:
            return [first + number / self.fps for number in range(count)]
        return [first + length * (number + 0.5) / count for number in range(count)]
