"""Any resolution: how LLaVA-NeXT and its descendants divide images, a base view and then a map of tiles, and videos."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from foveate._transformers import select_best_resolution
from foveate.core.grid import Grid
from foveate.families.llava import OfClip, side_of
from foveate.families.tower import Inputs
from foveate.families.vision import PictureLayout, picture_sizes


class Views(OfClip):
    """The views of images and the frames of videos, and the tokens that they become.

    Families differ in `shrunk`, and how they pool the frames of a video, which follow one another.

    Attributes:
        film_newlines: Number of newlines after all frames of a video.
    """

    runs_grids: ClassVar[bool] = False  # views overlap the image that the tokens stand for
    film_newlines: ClassVar[int] = 0

    @classmethod
    def shrunk(cls, config: Any, rows: int, columns: int) -> Grid:
        """Rows and columns of a map after the model has shrunk it. The default: it does not."""
        return rows, columns

    @classmethod
    def frame_side(cls, config: Any) -> tuple[int, float]:
        """Tokens along a side of a video's frame, and the share of that side that they cover."""
        raise NotImplementedError

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        if modality == "video":
            pictures = [cls.film(config, length) for length in lengths]
            if "pixel_values_videos" not in inputs:
                return pictures
        elif inputs.get("image_sizes") is not None:
            sizes = zip(lengths, picture_sizes(inputs["image_sizes"]), strict=True)
            pictures = [cls.image(config, length, size) for length, size in sizes]
        else:
            return [cls.of_length(config, length) for length in lengths]
        counts = zip(pictures, cls.views_of(config, modality, inputs), strict=True)
        return [replace(picture, images=count) for picture, count in counts]

    @classmethod
    def film(cls, config: Any, length: int) -> PictureLayout:
        """A video of `length` tokens: frames, and newlines after all of them."""
        side, share = cls.frame_side(config)
        frames, rest = divmod(length - cls.film_newlines, side**2)
        if rest:
            return PictureLayout()
        newlines = range(length - cls.film_newlines, length)
        return PictureLayout(((side, side),) * frames, newlines, place=lambda cells: cells * share)

    @classmethod
    def image(cls, config: Any, length: int, size: tuple[int, int]) -> PictureLayout:
        """An image of `length` tokens, of this height and width.

        The base view, then the map of tiles, with a newline after each row; or a base view and one newline. Its grids
        are unknown if it has another number of tokens.
        """
        side = side_of(config)
        base = side**2
        if length == base + 1:  # no tiles
            return PictureLayout(((side, side),), (base,))
        tall, wide = tiles_of(config, size)
        patches = filled_part(tall * side, wide * side, *size)
        rows, columns = cls.shrunk(config, *patches)
        if length != base + rows * (columns + 1):
            return PictureLayout()
        grids = [(side, side)]
        if rows * columns:  # an image may be so long that at most the newlines of its map are left
            grids.append((rows, columns))
        return PictureLayout(tuple(grids), range(base + columns, length, columns + 1))

    @classmethod
    def of_length(cls, config: Any, length: int) -> PictureLayout:
        """What the number of tokens alone tells: how many frames a video of it has, or that an image has no tiles."""
        frames = 0
        if cls.projects_frames:
            side, _ = cls.frame_side(config)
            frames, rest = divmod(length, side**2)
            if rest not in (0, cls.film_newlines):
                frames = 0
        is_view = length == side_of(config) ** 2 + 1 and not frames  # a base view and one newline
        return PictureLayout(images=1 if is_view else None, frames=frames)

    @classmethod
    def views_of(cls, config: Any, modality: str, inputs: Inputs) -> tuple[int, ...]:
        """Number of crops of each image, the base view included, or of frames of each video."""
        if modality == "video":
            videos, frames = inputs["pixel_values_videos"].shape[:2]
            return (int(frames),) * int(videos)
        sizes = picture_sizes(inputs["image_sizes"])
        return tuple(1 + math.prod(tiles_of(config, size)) for size in sizes)  # the base view and the tiles


def tiles_of(config: Any, size: tuple[int, int]) -> Grid:
    """Tiles down and across for an image of this height and width."""
    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    crop = config.vision_config.image_size
    return height // crop, width // crop


def filled_part(rows: int, columns: int, height: int, width: int) -> Grid:
    """Rows and columns of a map of `rows` x `columns` that the image fills."""
    # Equal amounts are cut off on opposite sides, so the total is even.
    if width / height > columns / rows:
        filled = int(round(height * columns / width, 7))
        rows -= 2 * ((rows - filled) // 2)
    else:
        filled = int(round(width * rows / height, 7))
        columns -= 2 * ((columns - filled) // 2)
    return rows, columns
