"""A clip's kept patches as contact sheets, one a stage, and a histogram of the frames that the kept tokens are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from foveate.viz.dim import Pixels
from foveate.viz.page import FAINT, INK, Page, fitted, wrapped
from foveate.viz.panel import Boxes, Stages, checked, panel
from foveate.viz.stages import LEGEND

__all__ = ["PLAIN_LEGEND", "Frame", "chosen", "draw_frames"]

WIDTH = 1400  # pixels inside the margins
MARGIN, GAP = 18, 10
ACROSS = 8  # frames in a row, upright ones more
MOST = 40  # frames drawn; of more, so many evenly chosen
LABEL, HEADING = 26, 40  # pixels under a frame and above a sheet
BARS, TICKS = 160, 46  # the histogram's height, and the room under it
CAPTION = 32
BAR = "#4a6fa5"
HEADING_SIZE, NOTE_SIZE, LABEL_SIZE, TICK_SIZE = 10, 7.5, 6.5, 6
PLAIN_LEGEND = "In colour: kept. Dark and hatched: dropped."


_Contacts = tuple[str, list[tuple[Pixels, str]]]  # a heading, and frames with what stands under each
_Counts = tuple[str, NDArray[np.int64]]  # a caption, and how many tokens of each frame a stage kept


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of a clip as the model saw it, or a picture.

    Attributes:
        picture: Its pixels.
        boxes: (tokens, 4): x0, y0, x1, y1 in [0, 1] of each of its vision tokens; NaN for one with no place in it.
        label: What stands under it, such as its time.
    """

    picture: Image.Image
    boxes: Boxes
    label: str


def draw_frames(frames: Sequence[Frame], stages: Stages) -> Image.Image:
    """Draw what was kept at each stage: a sheet of all frames, then one a stage with dropped patches dimmed, then how
    many of each frame's tokens every stage kept, beside an even share.

    Args:
        frames: The frames, in order; their tokens stand one after the other.
        stages: As for `draw_stages`.

    Raises:
        ShapeError: If there is no frame, a box array is not (tokens, 4), or an ordinal lies outside the tokens.
    """
    places, parsed = checked(len(frames), [frame.boxes for frame in frames], stages)
    starts = np.cumsum([0, *(len(place) for place in places)])
    drawn = chosen(len(frames), MOST)
    pictures = {index: _sized(frames[index].picture, len(drawn)) for index in drawn}
    heading = f"the frames: {starts[-1]} tokens"
    if len(drawn) < len(frames):
        heading += f"; {len(drawn)} of {len(frames)} are drawn"
    sheets: list[_Contacts] = [(heading, [(pictures[index], frames[index].label) for index in drawn])]
    shares: list[_Counts] = []
    legend = PLAIN_LEGEND
    for stage in parsed:
        cells = []
        for index in drawn:
            pixels, kept = panel(pictures[index], places[index], int(starts[index]), stage)
            cells.append((pixels, f"{frames[index].label}: {kept}"))
        sheets.append((stage.caption, cells))
        of_frames, _ = np.histogram(stage.origin[stage.origin >= 0], starts)
        shares.append((stage.caption, of_frames))
        if stage.merges:
            legend = LEGEND
    return _compose(sheets, shares, [frame.label for frame in frames], np.diff(starts), legend)


def chosen(count: int, most: int) -> list[int]:
    """Which of `count` frames are drawn: all, or `most` of them evenly spread, the first and the last among them."""
    indices: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return indices


def _sized(picture: Image.Image, count: int) -> Pixels:
    """The frame at the size it will be drawn in: a row of landscape frames fills the sheet."""
    side = WIDTH // min(ACROSS, max(5, count)) - GAP
    return fitted(picture, side / max(picture.size))


def _compose(
    sheets: Sequence[_Contacts], shares: Sequence[_Counts], labels: Sequence[str], sizes: NDArray[np.int64], legend: str
) -> Image.Image:
    """Sheets on white, from top to bottom, the histograms in one row below them."""
    pictures = [pixels for _, cells in sheets for pixels, _ in cells]
    wide = max(pixels.shape[1] for pixels in pictures) + GAP
    tall = max(pixels.shape[0] for pixels in pictures) + LABEL
    count = len(sheets[0][1])
    columns = min(count, max(1, (WIDTH + GAP) // wide))
    rows = ceil(count / columns)
    columns = ceil(count / rows)  # no row much shorter than the others
    width = max(columns * wide - GAP, WIDTH // 2) + 2 * MARGIN
    height = 2 * MARGIN + len(sheets) * (HEADING + rows * tall) + LABEL
    if shares:
        height += HEADING + BARS + TICKS
    page = Page(width, height)
    top = MARGIN
    for heading, cells in sheets:
        page.write(heading, MARGIN, top + 6, HEADING_SIZE)
        top += HEADING
        for number, (pixels, label) in enumerate(cells):
            row, column = divmod(number, columns)
            left, upper = MARGIN + column * wide, top + row * tall
            middle, below = left + pixels.shape[1] / 2, upper + pixels.shape[0] + 5
            page.put(pixels, left, upper)
            page.write(label, middle, below, LABEL_SIZE, colour=FAINT, align="center")
        top += rows * tall
    if shares:
        page.write("which frames the kept tokens are of (line: an even share)", MARGIN, top + 6, HEADING_SIZE)
        _histograms(page, shares, labels, sizes, top + HEADING)
    page.write(legend, MARGIN, height - MARGIN - LABEL / 2, NOTE_SIZE, colour=FAINT)
    return page.to_image()


def _histograms(
    page: Page, shares: Sequence[_Counts], labels: Sequence[str], sizes: NDArray[np.int64], top: float
) -> None:
    """A small bar chart a stage, side by side: tokens kept of each frame."""
    room = (page.width - 2 * MARGIN) / len(shares)
    for number, (caption, counts) in enumerate(shares):
        left = MARGIN + number * room + 44
        axes = page.axes(left, top + CAPTION, room - 60, BARS - CAPTION)
        _bars(axes, counts, sizes)
        ticks = sorted({0, (len(labels) - 1) // 2, len(labels) - 1})
        axes.set_xticks(ticks, [labels[at] for at in ticks])
        title = wrapped(caption, room, NOTE_SIZE)
        axes.set_title(title, fontsize=NOTE_SIZE, color=INK, loc="left", pad=4, parse_math=False)


def _bars(axes: Any, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """A bar a frame, and as a line what it would have if every frame kept the same share of its tokens."""
    axes.bar(range(len(counts)), counts, width=0.9, color=BAR)
    edges = np.arange(len(sizes) + 1) - 0.5
    even = np.append(sizes, sizes[-1]) * (counts.sum() / max(1, sizes.sum()))  # the last again, to end its step
    axes.step(edges, even, where="post", color=INK, linewidth=0.8)
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=TICK_SIZE, colors=FAINT, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
