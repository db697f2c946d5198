"""Dimming the patches of a picture that the decoder no longer sees. NumPy only."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["coverage", "dim"]

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]

SLATE = np.array([34, 38, 48], dtype=np.float32)  # what dropped patches fade to, in dark pictures as in bright
FADE = 0.72  # how far they fade
WASH = 0.75  # how far the parts fade to white that no vision token ever covered


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


def dim(picture: Pixels, boxes: NDArray[np.float64], kept: NDArray[np.int64]) -> Pixels:
    """The picture with dropped patches grey and dark, kept ones untouched.

    Where several tokens share a place (a thumbnail and its tiles), it is as bright as the share of them
    that stayed. Parts that no token covers, such as what a processor cropped away, are washed out.

    Shapes: (height, width, 3) uint8, (tokens, 4) boxes, (count,) indices into them -> as the picture.
    """
    height, width, _ = picture.shape
    all_tokens = coverage(boxes, height, width)
    light = coverage(boxes[kept], height, width) / np.maximum(all_tokens, 1)
    colour = picture.astype(np.float32)
    grey = (colour @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[:, :, None]
    dropped = grey + FADE * (SLATE - grey)
    unseen = grey + WASH * (255 - grey)
    shown = dropped + light[:, :, None] * (colour - dropped)
    return np.where(all_tokens[:, :, None] > 0, shown, unseen).round().astype(np.uint8)
