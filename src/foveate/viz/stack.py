"""Several pictures below one another."""

from collections.abc import Sequence

from PIL import Image

from foveate.errors import ShapeError


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures on one white sheet, from top to bottom, left edges in line.

    Raises:
        ShapeError: If there is none.
    """
    if not pictures:
        raise ShapeError("There is no picture to stack.")
    size = max(picture.width for picture in pictures), sum(picture.height for picture in pictures)
    sheet, top = Image.new("RGB", size, "white"), 0
    for picture in pictures:
        sheet.paste(picture.convert("RGB"), (0, top))
        top += picture.height
    return sheet
