"""Long strips for processors that take the centre square, or a square around them: only what is kept is made.

A processor that takes the centre first brings the shorter side to its own size. A picture of 2000 x 1 pixels becomes
one of 672,000 x 336 by that, 2 GiB with its copies, of which a square of 336 x 336 is kept. A square around a strip of
65,535 x 1 takes 12 GiB.
"""

import dataclasses
from math import ceil
from typing import Any

import numpy as np
from PIL import Image

from foveate.ask.pictures import Picture
from foveate.video import Clip

__all__ = ["is_strip", "small_square", "within_reach"]

LONG = 20
"""How many times as long as it is wide a picture may be that goes to the processor as it is."""
LARGE = 2048
"""Pixels: the square around a strip that is longer is made smaller."""
MARGIN = 4
"""Pixels beside the part that is kept: interpolation in a picture that grows looks at 3 at most."""


def within_reach(medium: Picture | Clip, processor: Any) -> Picture | Clip:
    """The same; of a long strip, what the processor would make of it.

    That has the processor's own size already, so that resizing and cropping leave it as it is.

    Args:
        medium: What goes in.
        processor: One that takes the centre square.
    """
    wanted = processor.image_processor
    side = wanted.size.get("shortest_edge")
    plain = side and wanted.do_resize and not wanted.size.get("longest_edge")
    crop = wanted.crop_size or {}
    if not plain or crop.get("height") != side or crop.get("width") != side:
        return medium
    if isinstance(medium, Picture):
        return dataclasses.replace(medium, image=_centre(medium.image, side, wanted.resample))
    tall, wide = medium.frames.shape[1:3]
    if not _grows(wide, tall, side):
        return medium
    frames = [np.asarray(_centre(image, side, wanted.resample)) for image in medium.images()]
    return dataclasses.replace(medium, frames=np.stack(frames))


def _centre(image: Image.Image, side: int, resample: Any) -> Image.Image:
    """The middle of a strip as a square of `side`; any other picture as it is."""
    if not _grows(*image.size, side):
        return image
    # Along the strip: pixels of the result, where the kept square begins in it, and pixels of the strip to one of it.
    longest, shortest = max(image.size), min(image.size)
    whole = side * longest // shortest
    begin = (whole - side) // 2
    scale = longest / whole

    # The pixels around the square first: Pillow reads positions in single precision, which in a short piece is fine.
    first = max(0, int(begin * scale) - MARGIN)
    last = min(longest, ceil((begin + side) * scale) + MARGIN)
    ends = begin * scale - first, (begin + side) * scale - first
    if image.width > image.height:
        piece = image.crop((first, 0, last, image.height))
        return piece.resize((side, side), resample, box=(ends[0], 0, ends[1], image.height))
    piece = image.crop((0, first, image.width, last))
    return piece.resize((side, side), resample, box=(0, ends[0], image.width, ends[1]))


def _grows(width: int, height: int, side: int) -> bool:
    """Whether a picture is a strip that becomes larger when its shorter side gets this long."""
    longest, shortest = max(width, height), min(width, height)
    return longest > LONG * shortest and shortest < side


def is_strip(size: tuple[int, int]) -> bool:
    """Whether a picture is so long and so thin that a square around it would be nearly all padding."""
    return max(size) > LARGE and max(size) > LONG * min(size)


def small_square(strip: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """A strip in the middle of a square, each side of it some times smaller, so that it has `LARGE` pixels at most.

    A pixel is the mean of those that it stands for, padding included, as if the whole square had been made first.

    Args:
        strip: RGB.
        colour: Of the padding.
    """
    if strip.height > strip.width:
        return small_square(strip.transpose(Image.Transpose.TRANSPOSE), colour).transpose(Image.Transpose.TRANSPOSE)
    times = ceil(strip.width / LARGE)
    start = (strip.width - strip.height) // 2
    first, last = start // times, ceil((start + strip.height) / times)
    band = Image.new("RGB", (ceil(strip.width / times) * times, (last - first) * times), colour)
    band.paste(strip, (0, start - first * times))
    square = Image.new("RGB", (band.width // times,) * 2, colour)
    square.paste(band.reduce(times), (0, first))
    return square
