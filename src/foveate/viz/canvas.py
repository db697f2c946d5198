"""A white page for pictures, text and charts."""

import base64
import io
import textwrap
from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.errors import ShapeError
from foveate.viz.dim import Pixels

DPI = 150
INK, FAINT = "#1c2330", "#667085"
HAIRLINE = (152, 162, 179)
LETTER = {"normal": 0.58, "bold": 0.65}  # upper estimate of a letter's width, as a share of the font size

PLAIN_LEGEND = "In colour: kept. Dark and hatched: dropped."
LEGEND = "In colour: kept. Tinted: merged into the framed patch of the same tint. Dark and hatched: dropped."


class Page:
    """A white page. Its height is chosen at the end, by `to_image`.

    Positions and sizes are in pixels from the upper left corner, font sizes in points.
    """

    def __init__(self, width: float) -> None:
        self.width = ceil(width)
        self._pictures: list[tuple[Pixels, float, float]] = []
        self._texts: list[tuple[str, float, float, dict[str, Any]]] = []
        self._charts: list[tuple[tuple[float, float, float, float], Callable[[Any], object]]] = []

    def put(self, pixels: Pixels, left: float, top: float) -> None:
        """Place a picture unscaled, so that patch edges stay sharp, with a hairline around it."""
        tall, wide, _ = pixels.shape
        framed = np.empty((tall + 2, wide + 2, 3), dtype=np.uint8)
        framed[:] = HAIRLINE
        framed[1:-1, 1:-1] = pixels
        self._pictures.append((framed, left, top))

    def write(
        self,
        text: str,
        x: float,
        top: float,
        size: float,
        *,
        room: float,
        lines: int | None = None,
        align: Literal["left", "center"] = "left",
        kind: Literal["normal", "bold", "faint"] = "normal",
    ) -> float:
        """Write text, wrapped to the width `room`.

        Args:
            text: The text.
            x: The left end of the lines, or their centre if `align` is "center".
            top: The upper edge of the first line.
            size: The font size, in points.
            room: The maximum width of a line.
            lines: The maximum number of lines; longer text ends with an ellipsis. None: no limit.
            align: The alignment of the lines at `x`.
            kind: The style of the text.

        Returns:
            The lower edge of the last line.
        """
        weight = "bold" if kind == "bold" else "normal"
        letters = max(12, int(room / (LETTER[weight] * size * DPI / 72)))
        text = textwrap.fill(text, letters, max_lines=lines, placeholder=" …")
        options = {"ha": align, "fontsize": size, "fontweight": weight, "color": FAINT if kind == "faint" else INK}
        self._texts.append((text, x, top, options))
        if not text:
            return top
        return top + line_height(size) * (1 + text.count("\n"))

    def row(
        self, panels: Sequence[tuple[Pixels, str]], left: float, top: float, *, cell: float, gap: float, size: float
    ) -> float:
        """Place pictures side by side, each centred in a cell of width `cell`, with its caption below.

        Returns:
            The lower edge of the tallest cell.
        """
        ends = [top]
        for number, (pixels, words) in enumerate(panels):
            tall, wide, _ = pixels.shape
            middle = left + number * (cell + gap) + cell / 2
            self.put(pixels, middle - wide / 2, top)
            below = top + tall + 5
            ends.append(self.write(words, middle, below, size, room=cell, kind="faint", align="center"))
        return max(ends)

    def chart(self, left: float, top: float, width: float, height: float, draw: Callable[[Any], object]) -> None:
        """Add a chart at this position; `draw` is called with its Matplotlib axes."""
        self._charts.append(((left, top, width, height), draw))

    def to_image(self, height: float) -> Image.Image:
        """Render the page with this height."""
        tall = ceil(height)
        # Matplotlib truncates sizes: 1236.9999 would become 1236, so add a hundredth of a pixel.
        figure = Figure(figsize=((self.width + 0.01) / DPI, (tall + 0.01) / DPI), dpi=DPI, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for framed, left, top in self._pictures:
            figure.figimage(framed, round(left) - 1, tall - round(top) - framed.shape[0] + 1, origin="upper")
        for text, x, top, options in self._texts:
            place = x / self.width, 1 - top / tall
            figure.text(*place, text, va="top", linespacing=1.25, parse_math=False, **options)  # "$" is no formula
        for (left, top, wide, high), draw in self._charts:
            draw(figure.add_axes((left / self.width, 1 - (top + high) / tall, wide / self.width, high / tall)))
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB")


def line_height(size: float) -> float:
    """Return the pixels from one line of text to the next."""
    return 1.45 * size * DPI / 72


def fit(picture: Image.Image, scale: float) -> Pixels:
    """Resize a picture to its final size before patches are dimmed, so that patch edges fall on whole pixels."""
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def data_url(picture: Image.Image) -> str:
    """Return a picture as a `data:` URL for HTML: WebP, or PNG if a side is longer than WebP allows."""
    kind = "WEBP" if max(picture.size) < 2**14 else "PNG"
    file = io.BytesIO()
    picture.save(file, kind, quality=88, method=4)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Place pictures below each other on one white sheet, aligned at the left.

    Raises:
        ShapeError: If there are no pictures.
    """
    if not pictures:
        raise ShapeError("There is no picture to stack. Give one or more.")
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    sheet, top = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        sheet.paste(picture.convert("RGB"), (0, top))
        top += picture.height
    return sheet
