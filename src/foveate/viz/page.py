"""A white page that pictures and words are put on."""

import textwrap
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.viz.dim import Pixels

__all__ = ["FAINT", "INK", "Page", "fitted", "line_height", "text_height", "wrapped"]

DPI = 150
INK, FAINT = "#1c2330", "#667085"
HAIRLINE = (152, 162, 179)
LETTER = {"normal": 0.58, "bold": 0.65}  # the width of a letter as a share of its size, on the safe side
SPACING = 1.45  # from line to line, as a share of the letters' size

Weight = Literal["normal", "bold"]


class Page:
    """A white page. Places and sizes are pixels from its upper left corner; letters are sized in points."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = ceil(width), ceil(height)
        # Matplotlib cuts off fractions: 1236.9999 would become 1236.
        inches = (self.width + 0.01) / DPI, (self.height + 0.01) / DPI
        self._figure = Figure(figsize=inches, dpi=DPI, facecolor="white")
        self._canvas = FigureCanvasAgg(self._figure)

    def put(self, pixels: Pixels, left: float, top: float) -> None:
        """Draw a picture pixel for pixel, so that patch edges stay sharp, with a hairline around it."""
        tall, wide, _ = pixels.shape
        framed = np.empty((tall + 2, wide + 2, 3), dtype=np.uint8)
        framed[:] = HAIRLINE
        framed[1:-1, 1:-1] = pixels
        self._figure.figimage(framed, round(left) - 1, self.height - round(top) - tall - 1, origin="upper")

    def write(
        self,
        text: str,
        x: float,
        top: float,
        size: float,
        *,
        colour: str = INK,
        align: Literal["left", "center"] = "left",
        weight: Weight = "normal",
    ) -> None:
        """Write lines of text, their left ends or their middles at `x`."""
        self._figure.text(
            x / self.width,
            1 - top / self.height,
            text,
            ha=align,
            va="top",
            fontsize=size,
            fontweight=weight,
            color=colour,
            linespacing=1.25,
            parse_math=False,  # a dollar is a dollar
        )

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Matplotlib axes for a chart."""
        bottom = self.height - top - height
        return self._figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height)
        )

    def to_image(self) -> Image.Image:
        """The finished page."""
        self._canvas.draw()
        return Image.fromarray(np.asarray(self._canvas.buffer_rgba()).copy()).convert("RGB")


def wrapped(text: str, width: float, size: float, *, weight: Weight = "normal", lines: int | None = None) -> str:
    """The text with line breaks so that it fits into `width` pixels, cut with an ellipsis after so many lines."""
    letter = LETTER[weight] * size * DPI / 72
    letters = max(12, int(width / letter))
    return textwrap.fill(text, letters, max_lines=lines, placeholder=" …")


def line_height(size: float) -> float:
    """Pixels from one line of text to the next."""
    return SPACING * size * DPI / 72


def text_height(text: str, size: float) -> float:
    """Pixels that the lines of a text take; none for an empty one."""
    if not text:
        return 0.0
    return line_height(size) * (1 + text.count("\n"))


def fitted(picture: Image.Image, scale: float) -> Pixels:
    """The pixels of a picture at the size it will be drawn in, so that patch edges fall on whole pixels."""
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
