"""A small preview of a picture in a terminal, made of two-coloured characters."""

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

HALF = "▀"  # upper half in the foreground colour, lower half in the background colour: two pixels per character
COLUMNS, ROWS = 100, 40  # maximum size of a preview
COLOURS = ("truecolor", "256")


def preview_on(console: Console, image: Image.Image) -> Text | None:
    """Return a preview that fits a console; None if it is not a terminal, or lacks colours or Unicode."""
    unable = console.is_dumb_terminal or console.no_color or not console.encoding.startswith("utf")
    if unable or not console.is_terminal:
        return None
    return preview(image, console.width, console.color_system)


def preview(image: Image.Image, console_width: int, color_system: str | None) -> Text | None:
    """Return the picture as lines of half blocks for rich to print; None if there are too few colours.

    A character shows two pixels, one above the other. They are about square in most terminals.

    Args:
        image: The picture.
        console_width: The width of the terminal, in columns. A preview uses at most 100 columns and 40 rows.
        color_system: The `color_system` of a `rich.console.Console`: "truecolor", "256", fewer colours, or None.
    """
    if color_system not in COLOURS or console_width < 2:
        return None
    widest = min(COLUMNS, console_width)
    scale = min(widest / image.width, 2 * ROWS / image.height)
    columns = max(1, int(image.width * scale))
    rows = max(1, round(image.height * scale / 2))
    small = image.convert("RGB").resize((columns, 2 * rows), Image.Resampling.LANCZOS)
    pixels = np.asarray(small).tolist()
    text = Text(no_wrap=True, overflow="crop", end="")
    for row in range(rows):
        for upper, lower in zip(pixels[2 * row], pixels[2 * row + 1], strict=True):
            text.append(HALF, Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        text.append("\n")
    return text
