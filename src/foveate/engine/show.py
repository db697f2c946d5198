"""The picture of a prefill: which of the user's pictures and frames its vision tokens are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.engine.trace import PrefillRecord
from foveate.errors import InputError
from foveate.video import Clip
from foveate.viz import Frame, draw_frames, draw_stages

__all__ = ["Media", "show"]

One = Image.Image | str | Path | Clip | NDArray[np.uint8]
Media = One | Sequence[One]


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture, or the frames of a clip with what is written under each."""

    pictures: list[Image.Image]
    labels: list[str]
    moves: bool

    @classmethod
    def of(cls, one: Any) -> "_Shown":
        if isinstance(one, Clip):
            return cls(one.images(), [_clock(second) for second in one.seconds], True)
        if isinstance(one, Image.Image | str | Path):
            return cls([one if isinstance(one, Image.Image) else Image.open(one)], ["picture"], False)
        pictures = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in one]
        return cls(pictures, [f"frame {number}" for number in range(1, len(pictures) + 1)], True)


def show(run: PrefillRecord, media: Media, sample: int) -> Image.Image:
    """See `Trace.show`."""
    videos = list(run.videos[sample]) if sample < len(run.videos) else []
    given: list[Any] = list(media) if isinstance(media, Sequence) and not isinstance(media, str) else [media]
    if videos == [True] and len(given) != 1:
        given = [given]
    shown = [_Shown.of(one) for one in given]
    takes = _match(shown, videos)
    places = [boxes for index in range(len(videos)) if (boxes := run.boxes[sample][index]) is not None]
    if len(places) < len(videos):
        raise InputError("Where this model's vision tokens look is not known, so they cannot be drawn.")
    crop = _centre_square if run.fit == "crop" else _whole
    whole = run.vision_tokens[sample]
    stages = [
        (f"{stage.place}: {stage.after[sample]} of {whole}", stage.origin[sample], stage.assign[sample])
        for stage in run.stages
    ]
    if not any(one.moves for one in shown):
        return draw_stages([crop(one.pictures[0]) for one in shown], places, stages)
    cells: list[Frame] = []
    for one, first, count in takes:
        sizes = [size for index in range(first, first + count) for size in run.frames[sample][index]]
        around = np.concatenate([places[index] for index in range(first, first + count)])
        step = 1 if len(one.pictures) == len(sizes) else 2  # some models make one of two frames
        if ceil(len(one.pictures) / step) != len(sizes):
            raise InputError(
                f"The model saw {len(sizes)} frames or pairs of frames; got {len(one.pictures)} to draw on."
            )
        starts = np.cumsum([0, *sizes])
        cells += [
            Frame(crop(one.pictures[at * step]), around[starts[at] : starts[at + 1]], one.labels[at * step])
            for at in range(len(sizes))
        ]
    return draw_frames(cells, stages)


def _match(shown: Sequence[_Shown], videos: Sequence[bool]) -> list[tuple[_Shown, int, int]]:
    """Each picture or clip with the first of the sample's images it is of, and how many: a clip may be shown to a model
    as one video or as so many pictures."""
    takes, at = [], 0
    for one in shown:
        count = len(one.pictures) if one.moves and not any(videos[at : at + 1]) else 1
        takes.append((one, at, count))
        at += count
    if at != len(videos):
        kinds = f"{videos.count(False)} images" + (f" and {videos.count(True)} videos" if any(videos) else "")
        raise InputError(f"The sample has {kinds}; got pictures and frames for {at} to draw on.")
    return takes


def _clock(second: float) -> str:
    """7.25 s, or 1:07.2 from a minute on."""
    minutes, rest = divmod(second, 60)
    return f"{int(minutes)}:{rest:04.1f}" if minutes else f"{second:.2f} s"


def _whole(picture: Image.Image) -> Image.Image:
    return picture


def _centre_square(picture: Image.Image) -> Image.Image:
    """The centre square, which processors that crop let the model see."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
