"""One image or video of a call."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from foveate.core.grid import frames_of
from foveate.engine.forms import EngineCut

__all__ = ["MediaTokens"]


@dataclass(slots=True, eq=False)
class MediaTokens:
    """One image or video of a call.

    Attributes:
        length: Its vision tokens.
        boxes: Where they look (asked for late: it may be costly).
        cut: What the tower made of them: its rows stand in the first places of the features; None if nothing.
        fixed: Which are no patches and always stay, as the CLS of a frame; nobody ranks them (`Family.always_kept`).
        video: Whether it is a video.
    """

    length: int
    boxes: Callable[[], Tensor | None]
    cut: EngineCut | None = None
    fixed: Sequence[int] = ()
    video: bool = False

    @property
    def free(self) -> int:
        """Its vision tokens that may leave."""
        return self.length - len(self.fixed)

    @property
    def frames(self) -> tuple[int, ...]:
        """Vision tokens of each of its frames, of which an image has one; empty where nobody knows."""
        if not self.video:
            return (self.length,)
        boxes = self.boxes()
        return () if boxes is None else frames_of(boxes)

    @property
    def free_frames(self) -> tuple[int, ...]:
        """As `frames`, of those that may leave."""
        ends = itertools.accumulate(self.frames)
        return tuple(
            size - sum(end - size <= place < end for place in self.fixed)
            for size, end in zip(self.frames, ends, strict=True)
        )

    @property
    def started(self) -> int:
        """Rows of these that enter the decoder."""
        return self.free if self.cut is None else len(self.cut.kept)

    @property
    def leaves(self) -> bool:
        """Whether the tower changed its rows."""
        return self.cut is not None and (self.cut.rows is not None or len(self.cut.kept) < self.free)
