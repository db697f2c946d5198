"""A clip's kept patches as contact sheets, one a stage, and a histogram of the frames that the kept tokens are of."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from foveate.viz.dim import Pixels
from foveate.viz.panel import Boxes, Stages, checked, panel, split
from foveate.viz.stages import DPI, FAINT, INK, LEGEND

__all__ = ["Frame", "draw_frames"]

WIDTH = 1400  # pixels inside the margins
MARGIN, GAP = 18, 10
ACROSS = 8  # frames in a row, upright ones more
MOST = 40  # frames drawn; of more, so many evenly chosen
LABEL, HEADING = 26, 40  # pixels under a frame and above a sheet
BARS, TICKS = 160, 46  # the histogram's height, and the room under it
CAPTION = 32
BAR = "#4a6fa5"


_Sheet = tuple[str, list[tuple[Pixels, str]]]  # a heading, and frames with what stands under each
_Counts = tuple[str, NDArray[np.int64]]  # a caption, and how many tokens of each frame a stage kept


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A frame of a clip as the model saw it.

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
    places = checked(len(frames), [frame.boxes for frame in frames], stages)
    starts = np.cumsum([0, *(len(place) for place in places)])
    drawn = np.linspace(0, len(frames) - 1, min(MOST, len(frames))).round().astype(int).tolist()
    pictures = {index: _sized(frames[index].picture, len(drawn)) for index in drawn}
    heading = f"the frames: {starts[-1]} tokens"
    if len(drawn) < len(frames):
        heading += f"; {len(drawn)} of {len(frames)} are drawn"
    sheets: list[_Sheet] = [(heading, [(pictures[index], frames[index].label) for index in drawn])]
    shares: list[_Counts] = []
    legend = "In colour: kept. Dark: dropped."
    for stage in stages:
        origin, assign = split(stage)
        cells = []
        for index in drawn:
            pixels, kept = panel(pictures[index], places[index], int(starts[index]), origin, assign)
            cells.append((pixels, f"{frames[index].label}: {kept}"))
        sheets.append((stage[0], cells))
        of_frames, _ = np.histogram(origin[origin >= 0], starts)
        shares.append((stage[0], of_frames))
        if assign is not None:
            legend = LEGEND
    return _compose(sheets, shares, [frame.label for frame in frames], np.diff(starts), legend)


def _sized(picture: Image.Image, count: int) -> Pixels:
    """The frame at the size it will be drawn in: a row of landscape frames fills the sheet."""
    side = WIDTH // min(ACROSS, max(5, count)) - GAP
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def _compose(
    sheets: Sequence[_Sheet], shares: Sequence[_Counts], labels: Sequence[str], sizes: NDArray[np.int64], legend: str
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
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, size: float, colour: str, align: str = "left") -> None:
        figure.text(x / width, 1 - y / height, text, ha=align, va="top", fontsize=size, color=colour)

    top = MARGIN
    for heading, cells in sheets:
        write(MARGIN, top + 6, heading, 10, INK)
        top += HEADING
        for number, (pixels, label) in enumerate(cells):
            row, column = divmod(number, columns)
            left, upper = MARGIN + column * wide, top + row * tall
            # figimage draws pixel for pixel: nothing is resampled, so patch edges stay sharp.
            figure.figimage(pixels, left, height - upper - pixels.shape[0], origin="upper")
            write(left + pixels.shape[1] / 2, upper + pixels.shape[0] + 5, label, 6.5, FAINT, "center")
        top += rows * tall
    if shares:
        write(MARGIN, top + 6, "which frames the kept tokens are of (line: an even share)", 10, INK)
        _histograms(figure, shares, labels, sizes, top + HEADING, width, height)
    write(MARGIN, height - MARGIN - LABEL / 2, legend, 7.5, FAINT)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba()).copy()).convert("RGB")


def _histograms(
    figure: Figure,
    shares: Sequence[_Counts],
    labels: Sequence[str],
    sizes: NDArray[np.int64],
    top: int,
    width: int,
    height: int,
) -> None:
    """A small bar chart a stage, side by side: tokens kept of each frame."""
    room = (width - 2 * MARGIN) / len(shares)
    for number, (caption, counts) in enumerate(shares):
        left = MARGIN + number * room + 44
        low, high = (height - top - BARS) / height, (BARS - CAPTION) / height
        axes = figure.add_axes((left / width, low, (room - 60) / width, high))
        axes.bar(range(len(counts)), counts, width=0.9, color=BAR)
        edges = np.arange(len(sizes) + 1) - 0.5
        even = np.append(sizes, sizes[-1]) * (counts.sum() / max(1, sizes.sum()))  # the last again, to end its step
        axes.step(edges, even, where="post", color=INK, linewidth=0.8)
        ticks = sorted({0, (len(labels) - 1) // 2, len(labels) - 1})
        axes.set_xticks(ticks, [labels[at] for at in ticks])
        axes.set_xlim(-0.6, len(counts) - 0.4)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.tick_params(labelsize=6, colors=FAINT, length=2)
        axes.set_title(textwrap.fill(caption, int(room / 8)), fontsize=7.5, color=INK, loc="left", pad=4)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
