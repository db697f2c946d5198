"""Dimming the patches of a picture that the decoder no longer sees. NumPy only."""

from colorsys import hsv_to_rgb

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]

SLATE = np.array([34, 38, 48], dtype=np.float32)  # what dropped patches fade to, in dark pictures as in bright
TINT = 0.42  # how much of a merged patch is its group's colour
# Thin diagonal lines tell dropped patches from kept ones also in a black picture, where nothing can be made darker.
HATCH = np.array([150, 158, 172], dtype=np.float32)  # their colour
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # how bright red, green and blue are


def coverage(boxes: NDArray[np.float64], height: int, width: int) -> Map:
    """How many boxes cover each pixel: (boxes, 4) of x0, y0, x1, y1 in [0, 1] -> (height, width) float32.

    A row with NaN stands for a token with no place in the picture, and covers nothing.
    """
    placed = boxes[~np.isnan(boxes).any(axis=1)]
    edges = np.rint(placed.clip(0, 1) * [width, height, width, height]).astype(np.int64)
    x0, y0, x1, y1 = edges.T
    steps = np.zeros((height + 1, width + 1), dtype=np.float32)  # a box is four steps; their running sum fills it
    for rows, columns, step in ((y0, x0, 1), (y0, x1, -1), (y1, x0, -1), (y1, x1, 1)):
        np.add.at(steps, (rows, columns), step)
    return steps.cumsum(axis=0).cumsum(axis=1)[:height, :width]


def dim(
    picture: Pixels,
    boxes: NDArray[np.float64],
    kept: NDArray[np.int64],
    merged: NDArray[np.int64] | None = None,
    groups: NDArray[np.int64] | None = None,
) -> Pixels:
    """The picture with dropped patches grey, dark and hatched, kept ones untouched, merged ones tinted by their group.

    Where several tokens share a place (a thumbnail and its tiles), it is as bright as the share of them
    that stayed. Parts that no token covers, such as what a processor cropped away, are washed out.

    Shapes: (height, width, 3) uint8, (tokens, 4) boxes, (count,) indices into them, (merged,) indices and the group of
    each -> as the picture.
    """
    height, width, _ = picture.shape
    colour = picture.astype(np.float32)
    grey = (colour @ LUMA)[:, :, None]  # one channel, which broadcasts over three; so have all counts below
    dropped = grey + 0.72 * (SLATE - grey)
    rows, columns = np.ogrid[:height, :width]
    lines = (rows + columns) % 6 == 0  # every 6 pixels, from the lower left to the upper right
    dropped[lines] += 0.45 * (HATCH - dropped[lines])
    unseen = grey + 0.75 * (255 - grey)  # no vision token ever covered it

    tokens = coverage(boxes, height, width)[:, :, None]
    at_least_one = np.maximum(tokens, 1)
    kept_share = coverage(boxes[kept], height, width)[:, :, None] / at_least_one
    shown = dropped + kept_share * (colour - dropped)
    if merged is not None and groups is not None and len(merged):
        joined = coverage(boxes[merged], height, width)[:, :, None]
        hues = np.zeros((height, width, 3), dtype=np.float32)
        for group in np.unique(groups).tolist():
            hues += coverage(boxes[merged[groups == group]], height, width)[:, :, None] * group_colour(group)
        tinted = grey + TINT * (hues / np.maximum(joined, 1) - grey)
        shown += joined / at_least_one * (tinted - dropped)
    return np.where(tokens > 0, shown, unseen).round().astype(np.uint8)


def group_colour(group: int) -> NDArray[np.float32]:
    """A light colour for a group, far from those of its neighbours in number: (3,) float32 in 0 … 255."""
    hue = group * 0.754878 % 1  # spreads any number of hues, also where numbers go up by ones, by threes, or by rows
    return np.array(hsv_to_rgb(hue, 0.66, 0.98), dtype=np.float32) * 255


def outline(picture: Pixels, box: NDArray[np.float64], colour: NDArray[np.float32], thickness: int = 2) -> None:
    """Draw a frame just inside a box, into the picture; a box with NaN has no place."""
    if np.isnan(box).any():
        return
    height, width, _ = picture.shape
    x0, y0, x1, y1 = np.rint(box.clip(0, 1) * [width, height, width, height]).astype(int)
    inside = picture[y0:y1, x0:x1]
    middle = inside[thickness:-thickness, thickness:-thickness].copy()
    inside[:] = colour.round().astype(np.uint8)
    inside[thickness:-thickness, thickness:-thickness] = middle
