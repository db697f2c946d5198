"""The kept patches drawn on the picture: a row an image, a panel a stage."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.viz.dim import Pixels
from foveate.viz.page import FAINT, Page, fitted, text_height, wrapped
from foveate.viz.panel import Boxes, Stages, checked, panel

__all__ = ["LEGEND", "draw_stages"]

LEGEND = "In colour: kept. Tinted: merged into the framed patch of the same tint. Dark and hatched: dropped."

PANEL = 405  # pixels, the longer side of a panel
GAP = 18
COUNT_ROOM = 31  # below a panel, for how many of its tokens are kept
TITLE_SIZE, CAPTION_SIZE, SMALL_SIZE = 11, 9.5, 8


def draw_stages(
    images: Sequence[Image.Image],
    boxes: Sequence[Boxes],
    stages: Stages,
    *,
    title: str | None = None,
) -> Image.Image:
    """Draw what was kept at each stage: every image whole, then once a stage with its dropped patches dimmed.

    Args:
        images: The pictures of one sample, in order.
        boxes: One (tokens, 4) array an image: x0, y0, x1, y1 of each vision token in [0, 1] of the picture;
            a row of NaN for a token with no place in it, such as a newline or CLS.
        stages: (caption, kept) in order; `kept` are ordinals into all images' tokens, one after the other. Where
            tokens were merged, (caption, origin, assign): the token each row stands for (−1: none), and the row each
            token went into (−1: dropped).
        title: A line above everything.

    Raises:
        ShapeError: If there is no image, images and boxes differ in number, a box array is not (tokens, 4),
            or an ordinal lies outside the tokens.
    """
    places, parsed = checked(len(images), boxes, stages)
    starts = np.cumsum([0, *(len(place) for place in places)])
    sheets = [fitted(image, PANEL / max(image.size)) for image in images]
    rows: list[list[tuple[Pixels, str]]] = []
    for sheet, place, start in zip(sheets, places, starts[:-1].tolist(), strict=True):
        row = [(sheet, f"{len(place)} tokens")]
        for stage in parsed:
            drawn, kept = panel(sheet, place, start, stage)
            row.append((drawn, f"{kept} of {len(place)}"))
        rows.append(row)
    first = "the picture"
    if len(images) > 1:
        first = "the pictures"
    legend = ""
    if any(stage.merges for stage in parsed):
        legend = LEGEND
    captions = [first, *(stage.caption for stage in parsed)]
    return _compose(rows, captions, title or "", legend)


def _compose(rows: list[list[tuple[Pixels, str]]], captions: list[str], title: str, legend: str) -> Image.Image:
    """Panels on white, captions above the first row, token counts below each when there are several rows."""
    widest = max(row[0][0].shape[1] for row in rows)
    width = GAP + len(captions) * (widest + GAP)
    captions = [wrapped(caption, widest, CAPTION_SIZE) for caption in captions]
    title = wrapped(title, width - 2 * GAP, TITLE_SIZE, weight="bold")
    legend = wrapped(legend, width - 2 * GAP, SMALL_SIZE)

    below = 0
    if len(rows) > 1:
        below = COUNT_ROOM
    caption_room = max(text_height(caption, CAPTION_SIZE) for caption in captions)
    head = GAP + text_height(title, TITLE_SIZE) + caption_room
    heights = [row[0][0].shape[0] + below + GAP for row in rows]
    page = Page(width, head + sum(heights) + text_height(legend, SMALL_SIZE))

    page.write(title, width / 2, GAP, TITLE_SIZE, align="center", weight="bold")
    for number, caption in enumerate(captions):
        middle = GAP + number * (widest + GAP) + widest / 2
        page.write(caption, middle, head - text_height(caption, CAPTION_SIZE), CAPTION_SIZE, align="center")
    top = head
    for row, height in zip(rows, heights, strict=True):
        for number, (pixels, count) in enumerate(row):
            tall, wide, _ = pixels.shape
            middle = GAP + number * (widest + GAP) + widest / 2
            page.put(pixels, middle - wide / 2, top)
            if below:
                page.write(count, middle, top + tall + 6, SMALL_SIZE, colour=FAINT, align="center")
        top += height
    page.write(legend, width / 2, top - 3, SMALL_SIZE, colour=FAINT, align="center")
    return page.to_image()
