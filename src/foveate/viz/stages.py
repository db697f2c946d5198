"""The kept patches drawn on the picture: a row an image, a panel a stage."""

import textwrap
from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from foveate.viz.dim import Pixels
from foveate.viz.panel import Boxes, Stages, checked, panel, split

__all__ = ["draw_stages"]

LEGEND = "In colour: kept. Tinted: merged into the framed patch of the same tint. Dark: dropped."

DPI = 150
PANEL = 2.7  # inches, the longer side of a panel
GAP = 0.12
CAPTION = 0.21  # inches a line
INK, FAINT = "#1c2330", "#667085"


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
    places = checked(len(images), boxes, stages)
    starts = np.cumsum([0, *(len(place) for place in places)])
    sheets = [np.asarray(_sized(image)) for image in images]
    rows: list[list[tuple[Pixels, str]]] = []
    for sheet, place, start in zip(sheets, places, starts[:-1].tolist(), strict=True):
        row = [(sheet, f"{len(place)} tokens")]
        for stage in stages:
            drawn, kept = panel(sheet, place, start, *split(stage))
            row.append((drawn, f"{kept} of {len(place)}"))
        rows.append(row)
    captions = ["the picture" if len(images) == 1 else "the pictures"]
    captions += [stage[0] for stage in stages]
    merges = any(split(stage)[1] is not None for stage in stages)
    return _compose(rows, captions, title, LEGEND if merges else None)


def _sized(image: Image.Image) -> Image.Image:
    """The picture at the size it will be drawn in, so that patch edges fall on whole pixels."""
    width, height = image.size
    scale = PANEL * DPI / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _compose(
    rows: list[list[tuple[Pixels, str]]], captions: list[str], title: str | None, legend: str | None
) -> Image.Image:
    """Panels on white, captions above the first row, token counts below each when there are several rows."""
    panel_width = max(row[0][0].shape[1] for row in rows) / DPI
    heights = [row[0][0].shape[0] / DPI for row in rows]
    per_line = max(12, int(panel_width * 13))
    wrapped = [textwrap.fill(caption, per_line) for caption in captions]
    most_breaks = max(text.count("\n") for text in wrapped)
    several = len(rows) > 1
    below = CAPTION if several else 0.0
    head = GAP + CAPTION * (1 + most_breaks)
    if title:
        head += 0.34
    width = sum([panel_width] * len(captions)) + GAP * (len(captions) + 1)
    height = head + sum(heights) + (GAP + below) * len(heights)
    if title:  # a narrow picture must not cut its title
        title = textwrap.fill(title, max(20, int(width * 10)))
        head += 0.2 * title.count("\n")
        height += 0.2 * title.count("\n")
    if legend:
        legend = textwrap.fill(legend, max(20, int(width * 15)))
        height += CAPTION * (1 + legend.count("\n"))
    figure = Figure(figsize=(ceil(width * DPI) / DPI, ceil(height * DPI) / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    width, height = figure.get_size_inches()

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, ha="center", va="top", linespacing=1.25, **style)

    if title:
        write(width / 2, GAP, title, fontsize=11, fontweight="bold", color=INK)
    top = head
    for number, (row, tall) in enumerate(zip(rows, heights, strict=True)):
        left = GAP
        for caption, (pixels, count) in zip(wrapped, row, strict=True):
            middle = left + panel_width / 2
            if number == 0:
                lines = CAPTION * (1 + caption.count("\n"))
                write(middle, top - lines - 0.02, caption, fontsize=9.5, color=INK)
            inset = (panel_width - pixels.shape[1] / DPI) / 2
            # figimage draws pixel for pixel: nothing is resampled, so patch edges stay sharp.
            figure.figimage(pixels, round((left + inset) * DPI), round((height - top - tall) * DPI), origin="upper")
            if several:
                write(middle, top + tall + 0.04, count, fontsize=8, color=FAINT)
            left += panel_width + GAP
        top += tall + below + GAP
    if legend:
        write(width / 2, top - 0.02, legend, fontsize=8, color=FAINT)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB")
