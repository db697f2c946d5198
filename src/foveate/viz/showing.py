"""Draw a prefill: find the picture or frame of each vision token, and draw the kept ones."""

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
from foveate.plain.upstream import brief, first_line
from foveate.video import Clip
from foveate.viz.contact_sheet import Frame, draw_frames
from foveate.viz.panel import Stages
from foveate.viz.stills import draw_stages

Medium = Image.Image | str | Path | Clip | NDArray[np.uint8]
Media = Medium | Sequence[Medium]


Prefill = Any
"""A `PrefillRecord` of `foveate.engine.trace`, which this package must not import."""


@dataclass(frozen=True, slots=True)
class _Medium:
    """A picture, or the frames of a clip, with their captions."""

    pictures: list[Image.Image]
    labels: list[str]
    moves: bool

    @classmethod
    def of(cls, medium: Any) -> "_Medium":
        if isinstance(medium, Clip):
            return cls(medium.images(), [f"{second:.2f} s" for second in medium.seconds], True)
        if isinstance(medium, Image.Image):
            return cls([medium], ["picture"], False)
        try:
            if isinstance(medium, str | Path):
                return cls([ImageOps.exif_transpose(Image.open(local_path(medium)))], ["picture"], False)
            pictures = [frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for frame in medium]
        except (AttributeError, OSError, TypeError) as error:
            raise InputError(
                f"{brief(medium)} cannot be drawn on: {first_line(error)} Pass a picture or film."
            ) from error
        return cls(pictures, [f"frame {number}" for number in range(1, len(pictures) + 1)], True)


def show(prefill: Prefill, media: Media, sample: int) -> Image.Image:
    """Draw the kept patches of a sample on its pictures; see `Trace.show`."""
    frames, moving = frames_shown(prefill, media, sample)
    stages = stages_of(prefill, sample)
    if moving:
        return draw_frames(frames, stages)
    return draw_stages([frame.picture for frame in frames], [frame.boxes for frame in frames], stages)


def frames_shown(prefill: Prefill, media: Media, sample: int) -> tuple[list[Frame], bool]:
    """Return the pictures and frames of a sample as the model saw them, in the order of its tokens.

    Returns:
        The frames, and True if any of them belongs to a clip.

    Raises:
        InputError: If the number of pictures or frames does not match the sample, or the positions of its tokens are
            unknown.
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
            raise InputError("The positions of this model's vision tokens are not known, so they cannot be drawn.")
        sizes = [size for image in prefill.frames[sample][first : first + count] for size in image]
        frames += _cut_up(medium, sizes, np.concatenate(places))
        first += count
    if prefill.fit == "crop":
        frames = [Frame(_centre_square(frame.picture), frame.boxes, frame.label) for frame in frames]
    return frames, any(medium.moves for medium in shown)


def _list(media: Media, videos: Sequence[bool]) -> list[Any]:
    """Return the media as a list. Several pictures for a sample with a single video are its frames."""
    media_list: list[Any] = [media]
    if isinstance(media, Sequence) and not isinstance(media, str):
        media_list = list(media)
    if list(videos) == [True] and len(media_list) != 1:
        return [media_list]
    return media_list


def drawn_stages(prefill: Prefill, sample: int) -> list[Any]:
    """Return the stages that can be drawn. Rows of the tower can be drawn only if each is one vision token."""
    arrived = prefill.vision_tokens[sample]
    return [stage for stage in prefill.stages if not stage.rows or stage.before[sample] == arrived]


def stages_of(prefill: Prefill, sample: int) -> Stages:
    """Return the stages for the drawing functions: a caption, the token of each row, and the row of merged tokens."""
    arrived = prefill.vision_tokens[sample]
    return [
        (f"{stage.place}: {stage.after[sample]} of {arrived}", stage.origin[sample], stage.assign[sample])
        for stage in drawn_stages(prefill, sample)
    ]


def _images(shown: Sequence[_Medium], videos: Sequence[bool]) -> list[int]:
    """Return the number of the sample's images that each picture or clip stands for.

    A clip is one video for some models, and one image per frame for others.

    Raises:
        InputError: If the sum is not the number of the sample's images.
    """
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
            f"The sample has {kinds}; got pictures and frames for {sum(counts)} to draw on. Give those of one sample, "
            "and select the sample of a batch with sample=…."
        )
    return counts


def _cut_up(medium: _Medium, sizes: Sequence[int], boxes: NDArray[np.float32]) -> Iterator[Frame]:
    """Yield each frame that the model saw with the boxes of its tokens. A picture is one frame.

    Args:
        medium: The picture or clip.
        sizes: The number of vision tokens of each frame that the model saw.
        boxes: (tokens, 4), the boxes of all frames in order.

    Raises:
        InputError: If the number of frames does not match.
    """
    if not medium.moves:
        yield Frame(medium.pictures[0], boxes, medium.labels[0])
        return
    step = 1
    if len(medium.pictures) != len(sizes):
        step = 2  # some models join two frames into one
    if ceil(len(medium.pictures) / step) != len(sizes):
        raise InputError(
            f"The model saw {len(sizes)} frames or pairs of frames; got {len(medium.pictures)} to draw on."
        )
    starts = np.cumsum([0, *sizes])  # frames of 9, 9 and 10 tokens -> 0, 9, 18, 28
    for index in range(len(sizes)):
        picture, label = medium.pictures[index * step], medium.labels[index * step]
        yield Frame(picture, boxes[starts[index] : starts[index + 1]], label)


def _centre_square(picture: Image.Image) -> Image.Image:
    """Cut out the centre square, which is all that the model sees after a processor crops."""
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return picture.crop((left, top, left + side, top + side))
