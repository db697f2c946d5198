"""At which times of a video frames are wanted."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path

from foveate.errors import InputError, SettingError
from foveate.video.survey import Survey

__all__ = ["HAIR", "Request"]

FRAMES = 32
MOST = 768  # frames that a rate alone may ask for
HAIR = 1e-6  # of a second, for times that went through floats


@dataclass(frozen=True, slots=True)
class Request:
    """Which frames of a video somebody wants; None where nothing is said. See `foveate.video.read`."""

    frames: int | None
    fps: float | None
    start: float | None
    end: float | None

    def check(self) -> None:
        """Refuse what no video can meet.

        Raises:
            SettingError: If a number leaves its range.
        """
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

    def part(self, contents: Survey, path: Path) -> tuple[float, float]:
        """From where to where frames are taken, in seconds.

        Raises:
            InputError: If the file ends before that.
        """
        first = self.start or 0.0
        last = min(contents.end, self.end or contents.end)
        if first >= last:
            raise InputError(
                f"{path} ends after {contents.end:.2f} s, before start={first:g} s. Give an earlier start."
            )
        return first, last

    def times(self, contents: Survey, path: Path) -> list[float]:
        """When the wanted frames are on show, ascending.

        Raises:
            InputError: If the file ends before the part that is meant.
            SettingError: If a rate alone asks for too many frames.
        """
        first, last = self.part(contents, path)
        length = last - first
        inside = [time for time in contents.times or () if first - HAIR <= time < last - HAIR]
        available = len(inside) or max(1, round(length * contents.rate))
        if self.fps is None:
            count = min(available, self.frames or FRAMES)
        else:
            count = self._count_by_rate(self.fps, length, available, path)

        if count == len(inside):
            return inside
        if self.fps is not None and count == _due(self.fps, length):
            return [first + number / self.fps for number in range(count)]
        return [first + length * (number + 0.5) / count for number in range(count)]

    def _count_by_rate(self, fps: float, length: float, available: int, path: Path) -> int:
        """How many frames a rate gives in so many seconds, at most those there are."""
        count = int(min(_due(fps, length), available))
        if self.frames is not None:
            return min(count, self.frames)
        if count > MOST:
            raise SettingError(
                f"{fps:g} frames per second of {path} are {count} frames; more than {MOST} are read only on request. "
                "Set frames=… to the most frames you want."
            )
        return count


def _due(fps: float, length: float) -> float:
    """How many frames come at this rate in so many seconds; the first one comes at once."""
    frames = length * fps - HAIR
    if frames == float("inf"):
        return frames
    return max(1, ceil(frames))
