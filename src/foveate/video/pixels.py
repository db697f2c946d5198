"""A decoded frame as it is meant to be seen: its colours, its pixels square, turned upright."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BT601, LIMITED, FULL = 5, 1, 2


def pixels(frame: Any, aspect: float, size: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """PyAV's frame as (height, width, 3) uint8, RGB.

    Args:
        frame: A decoded frame.
        aspect: How wide its pixels are, by their height.
        size: (height, width) to bring it to, where it has another; None: its own.
    """
    matrix = int(frame.colorspace)
    colours: dict[str, Any] = {}
    if matrix in (1, 9, 10):  # BT.709 and BT.2020: FFmpeg's converter takes all for BT.601 unless told
        colours = {"src_colorspace": matrix, "dst_colorspace": BT601, "dst_color_range": FULL}
        colours["src_color_range"] = int(frame.color_range) or LIMITED
    width = max(1, round(frame.width * aspect))
    square = frame.reformat(width=width, format="rgb24", **colours)
    rgb = _upright(square.to_ndarray(), _display_matrix(frame))
    if size is not None and rgb.shape[:2] != size:
        rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(rgb)


def _display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """(a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y), as the container says it was filmed."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
            return a, b, c, d
    return 1, 0, 0, 1


def _upright(rgb: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Turned by quarters and mirrored; what lies between goes to the nearest."""
    a, b, c, d = matrix
    down, right = d, a
    if abs(b) > abs(a):
        rgb = rgb.transpose(1, 0, 2)
        down, right = b, c
    if down < 0:
        rgb = rgb[::-1]
    if right < 0:
        rgb = rgb[:, ::-1]
    return rgb
