"""Kept patches of a clip: a contact sheet per stage, and a histogram of kept tokens over the frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from foveate.viz.canvas import FAINT, INK, Page, fit
from foveate.viz.panel import Boxes, DrawnTokens, Stages

WIDTH = 1400  # pixels inside the margins
MARGIN, GAP = 18, 10
MOST = 40  # maximum frames drawn; of more, evenly spaced ones
BARS, TICKS = 128, 30  # height of the histogram, and of the space below it
BAR = "#4a6fa5"
HEADING_SIZE, NOTE_SIZE, LABEL_SIZE, TICK_SIZE = 10, 7.5, 6.5, 6


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A picture, or a frame of a clip as the model saw it.

    Attributes:
        picture: The pixels.
        boxes: (tokens, 4), the x0, y0, x1, y1 in [0, 1] of each vision token; NaN for a token without a position.
        label: The caption, such as the time of the frame.
    """

    picture: Image.Image
    boxes: Boxes
    label: str


def draw_frames(frames: Sequence[Frame], stages: Stages) -> Image.Image:
    """Draw what each stage kept of a clip.

    The page has a sheet of all frames, a sheet per stage with dropped patches dimmed, and a histogram per stage of the
    kept tokens over the frames, with a line at an even share.

    Args:
        frames: The frames, in order. Token ordinals count through all frames.
        stages: As for `draw_stages`.

    Raises:
        ShapeError: If there are no frames, a box array is not (tokens, 4), or an ordinal is out of range.
    """
    tokens = DrawnTokens.of(len(frames), [frame.boxes for frame in frames], stages)
    drawn = choose(len(frames), MOST)
    labels = [frame.label for frame in frames]
    side = WIDTH // min(8, max(5, len(drawn))) - GAP  # 8 landscape frames fill the width of the sheet
    pictures = {at: fit(frames[at].picture, side / max(frames[at].picture.size)) for at in drawn}
    heading = f"the frames: {tokens.starts[-1]} tokens"
    if len(drawn) < len(frames):
        heading += f"; {len(drawn)} of {len(frames)} are drawn"
    sheets = [(heading, [(pixels, labels[at]) for at, pixels in pictures.items()])]
    for stage in tokens.stages:
        dimmed = zip(drawn, tokens.panels(stage, pictures), strict=True)
        sheets.append((stage.caption, [(pixels, f"{labels[at]}: {kept}") for at, (pixels, kept) in dimmed]))

    cell = max(pixels.shape[1] for pixels in pictures.values())
    rows = ceil(len(drawn) / min(len(drawn), max(1, (WIDTH + GAP) // (cell + GAP))))
    columns = ceil(len(drawn) / rows)  # spreads the frames evenly over the rows
    page = Page(max(columns * (cell + GAP) - GAP, WIDTH // 2) + 2 * MARGIN)
    inside, top = page.width - 2 * MARGIN, float(MARGIN)
    for heading, cells in sheets:
        top = page.write(heading, MARGIN, top, HEADING_SIZE, room=inside) + GAP
        for start in range(0, len(cells), columns):
            row = cells[start : start + columns]
            top = page.row(row, MARGIN, top, cell=cell, gap=GAP, size=LABEL_SIZE) + GAP
    if tokens.stages:
        heading = "kept tokens of each frame (line: an even share)"
        top = page.write(heading, MARGIN, top, HEADING_SIZE, room=inside) + GAP
        top = _histograms(page, tokens, labels, top) + GAP
    top = page.write(tokens.legend, MARGIN, top, NOTE_SIZE, room=inside, kind="faint")
    return page.to_image(top + MARGIN)


def choose(count: int, most: int) -> list[int]:
    """Return the indices of the frames to draw: all, or `most` evenly spaced ones from the first to the last."""
    indices: list[int] = np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()
    return indices


def _histograms(page: Page, tokens: DrawnTokens, labels: Sequence[str], top: float) -> float:
    """Draw a bar chart per stage, side by side, of the tokens kept of each frame. Return their lower edge."""
    room = (page.width - 2 * MARGIN) / len(tokens.stages)
    ticks = sorted({0, (len(labels) - 1) // 2, len(labels) - 1})
    sizes = np.array(tokens.counts)
    for number, stage in enumerate(tokens.stages):
        left = MARGIN + number * room
        below = page.write(stage.caption, left + 44, top, NOTE_SIZE, room=room - 60, lines=1)
        # Bins are the frames: with starts 0, 9, 18, tokens 3, 4 and 10 give counts 2, 1.
        counts, _ = np.histogram(stage.origin[stage.origin >= 0], tokens.starts)

        def draw(axes: Any, counts: NDArray[np.int64] = counts) -> None:
            _bars(axes, counts, sizes)
            axes.set_xticks(ticks, [labels[at] for at in ticks])

        page.chart(left + 44, below, room - 60, BARS, draw)
    return below + BARS + TICKS


def _bars(axes: Any, counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Draw a bar per frame, and a line for the same number of tokens spread evenly over all frames.

    Shapes: (frames,) kept tokens and (frames,) tokens of each frame.
    """
    axes.bar(range(len(counts)), counts, width=0.9, color=BAR)
    edges = np.arange(len(sizes) + 1) - 0.5
    even = np.append(sizes, sizes[-1]) * (counts.sum() / max(1, sizes.sum()))  # repeats the last value, to end its step
    axes.step(edges, even, where="post", color=INK, linewidth=0.8)
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.tick_params(labelsize=TICK_SIZE, colors=FAINT, length=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
