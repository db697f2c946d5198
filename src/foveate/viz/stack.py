"""Several pictures below one another, each under its own heading."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from foveate.errors import ShapeError

__all__ = ["stack"]

INK = "#1c2330"
SIZE = 22  # of the heading's letters, in pixels
MARGIN = 18


def stack(pictures: Sequence[tuple[str, Image.Image]], *, title: str | None = None) -> Image.Image:
    """(heading, picture) pairs on one white sheet, from top to bottom, left edges in line; `title` goes above all.

    Raises:
        ShapeError: If there is none.
    """
    if not pictures:
        raise ShapeError("There is no picture to stack.")
    width = max(picture.width for _, picture in pictures)
    font = ImageFont.load_default(SIZE)
    letters = max(20, int((width - 2 * MARGIN) / (SIZE * 0.56)))
    headings = [textwrap.fill(heading, letters) for heading, _ in pictures]
    if title:
        headings[0] = f"{textwrap.fill(title, letters)}\n\n{headings[0]}"
    tall = [MARGIN + round(SIZE * 1.3) * (heading.count("\n") + 1) for heading in headings]
    height = sum(tall) + sum(picture.height for _, picture in pictures)
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for heading, room, (_, picture) in zip(headings, tall, pictures, strict=True):
        draw.multiline_text((MARGIN, top + MARGIN), heading, fill=INK, font=font, spacing=round(SIZE * 0.3))
        sheet.paste(picture.convert("RGB"), (0, top + room))
        top += room + picture.height
    return sheet
