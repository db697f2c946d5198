"""Several methods on one prompt: its pictures once, then a row a method, a small panel a stage."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from foveate.errors import ShapeError
from foveate.viz.dim import Pixels
from foveate.viz.frames import PLAIN_LEGEND, Frame, chosen
from foveate.viz.mosaic import MOST, scaled, stage_panels
from foveate.viz.page import FAINT, Page, line_height, text_height, wrapped
from foveate.viz.prefill import Media, PrefillLike, frames_of
from foveate.viz.stages import LEGEND

__all__ = ["draw_comparison"]

LABEL = 230  # pixels for the name of a row
MARGIN, GAP = 18, 12
TITLE_SIZE, LABEL_SIZE, CAPTION_SIZE = 10, 8, 6.5


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the page.

    Attributes:
        label: What stands at its left.
        panels: Pictures with what stands under each.
    """

    label: str
    panels: list[tuple[Pixels, str]]

    @property
    def height(self) -> float:
        """Pixels down to the next row."""
        tallest = line_height(LABEL_SIZE) * 3  # room for a label where there is no panel
        for pixels, caption in self.panels:
            tallest = max(tallest, pixels.shape[0] + 4 + text_height(caption, CAPTION_SIZE))
        return tallest + GAP

    @property
    def width(self) -> int:
        """Pixels that the panels take, gaps included."""
        return sum(pixels.shape[1] + GAP for pixels, _ in self.panels)


def draw_comparison(
    prefills: Sequence[tuple[str, PrefillLike]], media: Media, title: str = "", sample: int = 0
) -> Image.Image:
    """Draw what each of several methods kept of the same pictures: these once, then a row a method.

    A row has a small panel for each stage that dropped or merged something, dropped patches dimmed as by `Trace.show`.
    Several pictures share a panel; of more than six, and of a clip, six evenly chosen ones are drawn.

    Args:
        prefills: For each method what stands beside its row, such as its name and answer, and the record of its
            prefill, `trace.latest`.
        media: The pictures and clips, as for `Trace.show`.
        title: A line above everything.
        sample: Which sample of the batch.

    Raises:
        InputError: If the number of pictures or frames is not the sample's, or its tokens have no known places.
        ShapeError: If there is no method.
    """
    if not prefills:
        raise ShapeError("There is no method to draw.")
    frames, moving = frames_of(prefills[0][1], media, sample)
    word = "picture"
    if moving:
        word = "frame"
    rows = [_originals(frames, word)]
    legend = PLAIN_LEGEND
    for label, prefill in prefills:
        row, merges = _row(label, prefill, media, sample)
        rows.append(row)
        if merges:
            legend = LEGEND
    return _compose(rows, title, legend)


def _originals(frames: Sequence[Frame], word: str) -> _Row:
    """The pictures as they are; `word` says what each is."""
    drawn = chosen(len(frames), MOST)
    panels = []
    for index in drawn:
        frame = frames[index]
        (pixels,) = scaled([frame.picture], sharing=len(drawn))
        caption = f"{frame.label}: {len(np.asarray(frame.boxes))} tokens"
        panels.append((pixels, wrapped(caption, pixels.shape[1], CAPTION_SIZE)))
    label = f"the {word}"
    if len(frames) > 1:
        label = f"the {len(frames)} {word}s"
    if len(drawn) < len(frames):
        label = f"{len(drawn)} of {label}"
    return _Row(label, panels)


def _row(label: str, prefill: PrefillLike, media: Media, sample: int) -> tuple[_Row, bool]:
    """The row of a method, and whether it merges tokens."""
    panels, merges = [], False
    for stage in stage_panels(prefill, media, sample):
        if not stage.dropped:
            continue
        merges = merges or stage.merges
        pixels = stage.pixels
        panels.append((pixels, wrapped(f"{stage.place}: {stage.after}", pixels.shape[1], CAPTION_SIZE)))
    if not panels:
        label += "\nNothing was dropped."
    return _Row(label, panels), merges


def _compose(rows: Sequence[_Row], title: str, legend: str) -> Image.Image:
    """The title, the rows with their labels at the left, and the legend."""
    width = 2 * MARGIN + LABEL + GAP + max(row.width for row in rows)
    title = wrapped(title, width - 2 * MARGIN, TITLE_SIZE, weight="bold")
    legend = wrapped(legend, width - 2 * MARGIN, CAPTION_SIZE)
    head = MARGIN + text_height(title, TITLE_SIZE)
    body = sum(row.height for row in rows)
    page = Page(width, head + body + text_height(legend, CAPTION_SIZE) + MARGIN / 2)
    page.write(title, MARGIN, MARGIN / 2, TITLE_SIZE, weight="bold")
    top = head
    for row in rows:
        most = int((row.height - GAP) / line_height(LABEL_SIZE))
        page.write(_label(row.label, most), MARGIN, top - 3, LABEL_SIZE)
        left = MARGIN + LABEL + GAP
        for pixels, caption in row.panels:
            tall, wide, _ = pixels.shape
            page.put(pixels, left, top)
            page.write(caption, left + wide / 2, top + tall + 4, CAPTION_SIZE, colour=FAINT, align="center")
            left += wide + GAP
        top += row.height
    page.write(legend, MARGIN, top, CAPTION_SIZE, colour=FAINT)
    return page.to_image()


def _label(text: str, most: int) -> str:
    """The text in lines that fit beside a row, at most so many."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        lines += wrapped(paragraph, LABEL, LABEL_SIZE, lines=most).split("\n")
    return "\n".join(lines[:most])
