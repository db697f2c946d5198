"""A decoded frame as it is meant to be seen: its colours, its pixels square, turned upright."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BT601, LIMITED, FULL = 5, 1, 2
PNG = ("png", "apng")


def pixels(frame: Any, aspect: float, size: tuple[int, ...] | None, codec: str) -> NDArray[np.uint8]:
    """PyAV's frame as (height, width, 3) uint8, RGB.

    Args:
        frame: A decoded frame.
        aspect: How wide its pixels are, by their height.
        size: (height, width) to bring it to, where it has another; None: its own.
        codec: What decoded it.
    """
    matrix = int(frame.colorspace)
    colours: dict[str, Any] = {}
    if matrix in (1, 9, 10):  # BT.709 and BT.2020: FFmpeg's converter takes all for BT.601 unless told
        colours = {"src_colorspace": matrix, "dst_colorspace": BT601, "dst_color_range": FULL}
        colours["src_color_range"] = int(frame.color_range) or LIMITED
    width = max(1, round(frame.width * aspect))
    is_clear = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    square = frame.reformat(width=width, format="rgba" if is_clear else "rgb24", **colours)
    rgb = square.to_ndarray()
    if is_clear:
        clear = Image.fromarray(rgb)  # on a white page, as pictures are shown
        rgb = np.asarray(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
    rgb = _upright(rgb, _display_matrix(frame, codec))
    if size is not None and rgb.shape[:2] != size:
        rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(rgb)


def _display_matrix(frame: Any, codec: str) -> tuple[float, float, float, float]:
    """(a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y), as the container says it was filmed.

    PyAV does not know all that FFmpeg has beside a frame (EXIF), and frees the name of a PNG's profile a second time,
    which ends the program: of these the rotation is known, without mirroring.
    """
    with suppress(ValueError):
        for data in frame.side_data if codec not in PNG else ():
            if data.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
                return a, b, c, d
    turn = -math.radians(frame.rotation)
    return math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)


def _upright(rgb: NDArray[np.uint8], matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
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
