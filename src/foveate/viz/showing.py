"""The picture of a prefill: which of the user's pictures and frames its vision tokens are of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from foveate.errors import InputError
from foveate.plain.files import local_path
from foveate.video import Clip
from foveate.viz.frames import Frame, draw_frames
from foveate.viz.panel import Stages
from foveate.viz.stills import draw_stages

Medium = Image.Image | str | Path | Clip | NDArray[np.uint8]
Media = Medium | Sequence[Medium]


Prefill = Any
"""A prefill's `PrefillRecord` of `foveate.engine.trace`, which stands above this room."""


@dataclass(frozen=True, slots=True)
class _Medium:
    """A picture, or the frames of a clip with what is written under each."""

    pictures: list[Image.Image]
    labels: list[str]
    moves: bool

    @classmethod
    def of(cls, medium: Any) -> "_Medium":
        if isinstance(medium, Clip):
            return cls(medium.images(), [_clock(second) for second in medium.seconds], True)
        if isinstance(medium, Image.Image):
            return cls([medium], ["picture"], False)
        if isinstance(medium, str | Path):
            return cls([ImageOps.exif_transpose(Image.open(local_path(str(medium))))], ["picture"], False)
        pictures = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in medium]
        return cls(pictures, [f"frame {number}" for number in range(1, len(pictures) + 1)], True)


def show(prefill: Prefill, media: Media, sample: int) -> Image.Image:
    """The kept patches of a sample drawn on its pictures; see `Trace.show`."""
    frames, moving = frames_of(prefill, media, sample)
    stages = stages_of(prefill, sample)
    if moving:
        return draw_frames(frames, stages)
    return draw_stages([frame.picture for frame in frames], [frame.boxes for frame in frames], stages)


def frames_of(prefill: Prefill, media: Media, sample: int) -> tuple[list[Frame], bool]:
    """The pictures and frames of a sample as the model saw them, in the order of its tokens; whether any is of a clip.

    Raises:
        InputError: If the number of pictures or frames is not the sample's, or its tokens have no known places.
    """
    videos: list[bool] = []
    if sample < len(prefill.videos):
        videos = list(prefill.videos[sample])
    shown = [_Medium.of(medium) for medium in _list(media, videos)]
    frames: list[Frame] = []
    first = 0
    for medium, count in zip(shown, _images(shown, videos), strict=True):
        boxes = prefill.boxes[sample][first : first + count]
        places = [image for image in boxes if image is not None]
        if len(places) < len(boxes):
            raise InputError("Where this model's vision tokens look is not known, so they cannot be drawn.")
        sizes = [size for image in prefill.frames[sample][first : first + count] for size in image]
        frames += _cut_up(medium, sizes, np.concatenate(places))
        first += count
    if prefill.fit == "crop":
        frames = [Frame(_centre_square(frame.picture), frame.boxes, frame.label) for frame in frames]
    return frames, any(medium.moves for medium in shown)


def _list(media: Media, videos: Sequence[bool]) -> list[Any]:
    """What was handed in as a list; the pictures of a lone video are its frames."""
    media_list: list[Any] = [media]
    if isinstance(media, Sequence) and not isinstance(media, str):
        media_list = list(media)
    if list(videos) == [True] and len(media_list) != 1:
        return [media_list]
    return media_list


def drawn_stages(prefill: Prefill, sample: int) -> list[Any]:
    """The cuts that can be drawn: where the tower's rows are no vision tokens, it is not known where they look."""
    arrived = prefill.vision_tokens[sample]
    return [stage for stage in prefill.stages if not stage.rows or stage.before[sample] == arrived]


def stages_of(prefill: Prefill, sample: int) -> Stages:
    """Every cut as drawings take it: a caption, the token of each row, and where merged ones went."""
    arrived = prefill.vision_tokens[sample]
    return [
        (f"{stage.place}: {stage.after[sample]} of {arrived}", stage.origin[sample], stage.assign[sample])
        for stage in drawn_stages(prefill, sample)
    ]


def _images(shown: Sequence[_Medium], videos: Sequence[bool]) -> list[int]:
    """How many of the sample's images each picture or clip stands for: a clip may be shown to a model as one video, or
    as so many pictures."""
    counts: list[int] = []
    for medium in shown:
        first = sum(counts)
        is_video = any(videos[first : first + 1])
        counts.append(1 if is_video else len(medium.pictures))
    if sum(counts) != len(videos):
        kinds = f"{videos.count(False)} images"
        if any(videos):
            kinds += f" and {videos.count(True)} videos"
        raise InputError(
            f"The sample has {kinds}; got pictures and frames for {sum(counts)} to draw on. Give those of one sample; "
            "sample=… says which of the batch."
        )
    return counts


def _cut_up(medium: _Medium, sizes: Sequence[int], boxes: NDArray[np.float32]) -> Iterator[Frame]:
    """Each frame that the model saw, with the boxes of its tokens; a picture is one.

    Args:
        medium: What was handed in.
        sizes: Vision tokens of each frame that the model saw.
        boxes: (tokens, 4): theirs, one frame after the other.
    """
    if not medium.moves:
        yield Frame(medium.pictures[0], boxes, medium.labels[0])
        return
    step = 1
    if len(medium.pictures) != len(sizes):
        step = 2  # some models make one of two frames
    if ceil(len(medium.pictures) / step) != len(sizes):
        raise InputError(
            f"The model saw {len(sizes)} frames or pairs of frames; got {len(medium.pictures)} to draw on."
        )
    starts = np.cumsum([0, *sizes])  # of frames with 9, 9 and 10 tokens: 0, 9, 18, 28
    for index in range(len(sizes)):
        picture, label = medium.pictures[index * step], medium.labels[index * step]
        yield Frame(picture, boxes[starts[index] : starts[index + 1]], label)


def _clock(second: float) -> str:
    """7.25 s, or 1:07.2 from a minute on."""
    if second < 60:
        return f"{second:.2f} s"
    minutes, rest = divmod(round(second, 1), 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _centre_square(picture: Image.Image) -> Image.Image:
    """The centre square, which processors that crop let the model see."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
