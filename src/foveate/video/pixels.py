"""Convert a decoded frame to upright RGB with square pixels."""

import math
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BT601, LIMITED, FULL = 5, 1, 2
PNG = ("png", "apng")


def pixels(frame: Any, aspect: float, size: tuple[int, ...] | None, codec: str) -> NDArray[np.uint8]:
    """Convert a PyAV frame to (height, width, 3) uint8, RGB.

    Args:
        frame: A decoded frame.
        aspect: Width of a pixel divided by its height.
        size: (height, width) to resize to; None keeps the frame's size.
        codec: The decoder's name.
    """
    matrix = int(frame.colorspace)
    colours: dict[str, Any] = {}
    if matrix in (1, 9, 10):  # BT.709 and BT.2020: FFmpeg's converter assumes BT.601 by default
        colours = {"src_colorspace": matrix, "dst_colorspace": BT601, "dst_color_range": FULL}
        colours["src_color_range"] = int(frame.color_range) or LIMITED
    width = max(1, round(frame.width * aspect))
    is_clear = frame.format.has_palette or any(part.is_alpha for part in frame.format.components)
    square = frame.reformat(width=width, format="rgba" if is_clear else "rgb24", **colours)
    rgb = square.to_ndarray()
    if is_clear:
        clear = Image.fromarray(rgb)  # transparency becomes white, as in images
        rgb = np.asarray(Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB"))
    rgb = _upright(rgb, _display_matrix(frame, codec))
    if size is not None and rgb.shape[:2] != size:
        rgb = np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(rgb)


def _display_matrix(frame: Any, codec: str) -> tuple[float, float, float, float]:
    """Return the container's display matrix (a, b, c, d): a pixel at (x, y) is shown at (a x + c y, b x + d y).

    PyAV fails on some side data (ValueError for EXIF) and crashes on a PNG's colour profile (a double free). In these
    cases only the frame's rotation is used, without mirroring.
    """
    with suppress(ValueError):
        for data in frame.side_data if codec not in PNG else ():
            if data.type.name == "DISPLAYMATRIX":
                a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
                return a, b, c, d
    turn = -math.radians(frame.rotation)
    return math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)


def _upright(rgb: NDArray[np.uint8], matrix: tuple[float, float, float, float]) -> NDArray[np.uint8]:
    """Rotate by quarter turns and mirror. Other angles are rounded to the nearest quarter turn."""
    # |b| > |a|: x becomes y, so the axes swap: (height, width, 3) -> (width, height, 3). A negative factor mirrors.
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
