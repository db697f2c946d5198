"""Dim the patches of a picture that the decoder no longer sees. NumPy only."""

from colorsys import hsv_to_rgb

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Map = NDArray[np.float32]

SLATE = np.array([34, 38, 48], dtype=np.float32)  # colour that dropped patches fade to
TINT = 0.42  # share of the group's colour in a merged patch
# Colour of the thin diagonal lines on dropped patches. They mark dropped patches in black pictures too.
HATCH = np.array([150, 158, 172], dtype=np.float32)
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601 weights of red, green and blue


def covered_share(boxes: NDArray[np.float64], height: int, width: int) -> Map:
    """Count the boxes that cover each pixel.

    Shapes: (boxes, 4) of x0, y0, x1, y1 in [0, 1] -> (height, width) float32. A row with NaN is a token without a
    position in the picture, and covers nothing.
    """
    placed = boxes[~np.isnan(boxes).any(axis=1)]
    edges = np.rint(placed.clip(0, 1) * [width, height, width, height]).astype(np.int64)
    x0, y0, x1, y1 = edges.T
    # A box is +1 and -1 at its four corners, and running sums along both axes fill it. In one row, columns 1 to 3:
    # steps 0 1 0 -1 -> sums 0 1 1 0.
    steps = np.zeros((height + 1, width + 1), dtype=np.float32)
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
    """Make dropped patches dark, grey and hatched, tint merged ones by their group, and leave kept ones unchanged.

    Where several tokens cover a pixel (a thumbnail and its tiles), its brightness is the share of them that stayed.
    Pixels that no token covers, such as those a processor cropped away, are faded to white.

    Args:
        picture: (height, width, 3) uint8.
        boxes: (tokens, 4), the box of each token, as for `covered_share`.
        kept: (kept,), indices of kept tokens.
        merged: (merged,), indices of merged tokens.
        groups: (merged,), the group of each merged token.

    Returns:
        (height, width, 3) uint8.
    """
    height, width, _ = picture.shape
    colour = picture.astype(np.float32)
    grey = (colour @ LUMA)[:, :, None]  # (height, width, 1): broadcasts over the three channels, as do all counts below
    dropped = grey + 0.72 * (SLATE - grey)
    rows, columns = np.ogrid[:height, :width]
    lines = (rows + columns) % 6 == 0  # lines 6 pixels apart, from the lower left to the upper right
    dropped[lines] += 0.45 * (HATCH - dropped[lines])
    unseen = grey + 0.75 * (255 - grey)  # for pixels that no vision token covers

    tokens = covered_share(boxes, height, width)[:, :, None]
    at_least_one = np.maximum(tokens, 1)
    kept_share = covered_share(boxes[kept], height, width)[:, :, None] / at_least_one
    shown = dropped + kept_share * (colour - dropped)
    if merged is not None and groups is not None and len(merged):
        joined = covered_share(boxes[merged], height, width)[:, :, None]
        hues = np.zeros((height, width, 3), dtype=np.float32)
        for group in np.unique(groups).tolist():
            hues += covered_share(boxes[merged[groups == group]], height, width)[:, :, None] * group_colour(group)
        tinted = grey + TINT * (hues / np.maximum(joined, 1) - grey)
        shown += joined / at_least_one * (tinted - dropped)
    return np.where(tokens > 0, shown, unseen).round().astype(np.uint8)


def group_colour(group: int) -> NDArray[np.float32]:
    """Return a light colour for a group, distinct from those of groups with similar numbers: (3,) float32, 0 to 255."""
    hue = group * 0.754878 % 1  # irrational step: spreads the hues for any spacing of the numbers
    return np.array(hsv_to_rgb(hue, 0.66, 0.98), dtype=np.float32) * 255


def outline(picture: Pixels, box: NDArray[np.float64], colour: NDArray[np.float32], thickness: int = 2) -> None:
    """Draw a frame just inside a box, in place. A box with NaN is skipped."""
    if np.isnan(box).any():
        return
    height, width, _ = picture.shape
    x0, y0, x1, y1 = np.rint(box.clip(0, 1) * [width, height, width, height]).astype(int)
    inside = picture[y0:y1, x0:x1]
    middle = inside[thickness:-thickness, thickness:-thickness].copy()
    inside[:] = colour.round().astype(np.uint8)
    inside[thickness:-thickness, thickness:-thickness] = middle
