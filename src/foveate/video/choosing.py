"""At which times of a video frames are wanted."""

from dataclasses import dataclass
from math import ceil, isinf, isnan
from numbers import Integral, Real

from foveate.errors import InputError, SettingError
from foveate.video.survey import Survey

__all__ = ["HAIR", "FramesWanted"]

FRAMES = 32
MOST = 768  # frames that a rate alone may ask for
HAIR = 1e-6  # of a second, for times that went through floats


@dataclass(frozen=True, slots=True)
class FramesWanted:
    """Which frames of a video somebody wants; None where nothing is said. See `foveate.video.read`."""

    frames: int | None
    fps: float | None
    start: float | None
    end: float | None

    def check(self) -> None:
        """Refuse what no video can meet.

        Raises:
            SettingError: If a number leaves its range, or is none.
        """
        if self.frames is not None and (not isinstance(self.frames, Integral) or isinstance(self.frames, bool)):
            raise SettingError(f"frames is a whole number; got {self.frames!r:.100}.")
        for name, value in (("fps", self.fps), ("start", self.start), ("end", self.end)):
            if value is not None and not _is_number(value):
                raise SettingError(f"{name} is a number; got {value!r:.100}.")
        if self.start is not None and isinf(self.start):
            raise SettingError(f"start must be 0 or later, and before the end of the video; got {self.start}.")
        if self.frames is not None and self.frames < 1:
            raise SettingError(f"frames must be 1 or more; got {self.frames}.")
        if self.fps is not None and not self.fps > 0:
            raise SettingError(f"fps must be above 0; got {self.fps:g}.")
        too_early = self.start is not None and self.start < 0
        empty = self.end is not None and self.end <= (self.start or 0.0)
        if too_early or empty:
            raise SettingError(
                f"start must be 0 or later, and end later than start; got start={self.start}, end={self.end}."
            )

    def part(self, contents: Survey, name: str) -> tuple[float, float]:
        """From where to where frames are taken, in seconds.

        Raises:
            InputError: If the file ends before that.
        """
        first = self.start or 0.0
        last = min(contents.end, self.end or contents.end)
        if first >= last:
            raise InputError(
                f"{name} ends after {contents.end:.2f} s, before start={first:g} s. Give an earlier start."
            )
        return first, last

    def times(self, contents: Survey, name: str) -> list[float]:
        """When the wanted frames are on show, ascending.

        Raises:
            InputError: If the file ends before the part that is meant.
            SettingError: If a rate alone asks for too many frames.
        """
        first, last = self.part(contents, name)
        length = last - first
        inside = self._inside(contents, first, last)
        count = self.count(contents, name)
        if count == len(inside):
            return inside
        if self.fps is not None and count == _due(self.fps, length):
            return [first + number / self.fps for number in range(count)]
        return [first + length * (number + 0.5) / count for number in range(count)]

    def count(self, contents: Survey, name: str) -> int:
        """How many frames are wanted of those that there are.

        Raises:
            InputError: If the file ends before the part that is meant.
            SettingError: If a rate alone asks for too many frames.
        """
        first, last = self.part(contents, name)
        available = len(self._inside(contents, first, last)) or max(1, round((last - first) * contents.rate))
        if self.fps is None:
            return min(available, self.frames or FRAMES)
        return self._count_by_rate(self.fps, last - first, available, name)

    def _inside(self, contents: Survey, first: float, last: float) -> list[float]:
        """When frames come on show between two times, as far as that is known."""
        return [time for time in contents.times or () if first - HAIR <= time < last - HAIR]

    def _count_by_rate(self, fps: float, length: float, available: int, name: str) -> int:
        """How many frames a rate gives in so many seconds, at most those there are."""
        count = int(min(_due(fps, length), available))
        if self.frames is not None:
            return min(count, self.frames)
        if count > MOST:
            raise SettingError(
                f"{fps:g} frames per second of {name} are {count} frames; more than {MOST} are read only on request. "
                "Set frames=… to the most frames you want."
            )
        return count


def _is_number(value: object) -> bool:
    """Whether this is a number that a float can hold, and not the one that is none."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return not isnan(value)
    except OverflowError:
        return False


def _due(fps: float, length: float) -> float:
    """How many frames come at this rate in so many seconds; the first one comes at once."""
    frames = length * fps - HAIR
    if frames == float("inf"):
        return frames
    return max(1, ceil(frames))
