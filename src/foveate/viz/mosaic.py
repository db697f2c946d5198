"""A panel a stage: the pictures of a sample side by side in it, with what left dimmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from PIL import Image

from foveate.viz.canvas import fit
from foveate.viz.dim import Pixels
from foveate.viz.frames import choose
from foveate.viz.panel import Tokens
from foveate.viz.showing import Media, Prefill, drawn_stages, frames_of, stages_of

MOST = 6  # pictures or frames drawn where nobody says how many; of more, so many evenly chosen
SIDE = 170  # pixels, of a square panel; one of another shape has its area
LONGEST = 26 / 17  # the longest side of a panel, as a share of a square one's
LINE = 2  # pixels between the pictures of a panel
DARK_GREY, LIGHT_GREY = 152, 232  # the lines, and what a picture leaves free of its cell


@dataclass(frozen=True, slots=True, eq=False)
class StagePanel:
    """What a stage left, as one picture.

    Attributes:
        place: Where the stage is, in words.
        layer: The decoder layer before which it is; None for other places.
        before, after: Vision tokens that arrived and that went on.
        merges: Whether rows may stand for several tokens.
        pixels: (height, width, 3) uint8.
        rows: Whether it is of the tower's rows, which come back; then `before` and `after` count them.
    """

    place: str
    layer: int | None
    before: int
    after: int
    merges: bool
    pixels: Pixels
    rows: bool = False

    @property
    def dropped(self) -> bool:
        """Whether fewer tokens went on than arrived."""
        return self.after < self.before


def stage_panels(
    prefill: Prefill, media: Media, sample: int = 0, side: int = SIDE, most: int = MOST
) -> list[StagePanel]:
    """A panel for each stage of a prefill, in order.

    Args:
        prefill: `trace.latest`.
        media: The pictures and clips, as for `Trace.show`.
        sample: Which sample of the batch.
        side: Pixels of a square panel; one of another shape has its area.
        most: How many pictures or frames are drawn; of more, so many evenly chosen.

    Raises:
        InputError: If the number of pictures or frames is not the sample's, or its tokens have no known places.
    """
    frames, _ = frames_of(prefill, media, sample)
    tokens = Tokens.of(len(frames), [frame.boxes for frame in frames], stages_of(prefill, sample))
    drawn = choose(len(frames), most)
    pictures = dict(zip(drawn, scale([frames[index].picture for index in drawn], side), strict=True))
    panels = []
    for record, stage in zip(drawn_stages(prefill, sample), tokens.stages, strict=True):
        mosaic = _mosaic([pixels for pixels, _ in tokens.panels(stage, pictures)])
        before, after = record.before[sample], record.after[sample]
        panels.append(StagePanel(record.place, record.layer, before, after, stage.merges, mosaic, record.rows))
    return panels


def plain_panel(pictures: Sequence[Image.Image], side: int = SIDE, most: int = MOST) -> Pixels:
    """The pictures, or `most` of them evenly chosen, as they are: (height, width, 3) uint8."""
    return _mosaic(scale([pictures[index] for index in choose(len(pictures), most)], side))


def scale(pictures: Sequence[Image.Image], side: int = SIDE, sharing: int = 1) -> list[Pixels]:
    """Pictures at the size at which all of them fill a panel, or one of so many panels that share a row.

    Args:
        pictures: One or several.
        side: Pixels of a square panel.
        sharing: How many panels share a row.
    """
    # Each is first scaled to area 1, whatever its own size.
    units = [1 / sqrt(picture.width * picture.height) for picture in pictures]
    sizes = [(picture.width * unit, picture.height * unit) for picture, unit in zip(pictures, units, strict=True)]
    wide, tall = max(width for width, _ in sizes), max(height for _, height in sizes)
    columns = _columns(len(pictures), wide, tall)
    rows = ceil(len(pictures) / columns)
    area: float = side * side
    if len(pictures) > 1:
        area *= 1.5
    if sharing > 3:
        area /= 2
    factor = min(sqrt(area / (columns * wide * rows * tall)), LONGEST * side / max(columns * wide, rows * tall))
    return [fit(picture, factor * unit) for picture, unit in zip(pictures, units, strict=True)]


def _columns(count: int, wide: float, tall: float) -> int:
    """How many pictures of this size lie side by side, so that they are drawn as large as can be.

    A panel may be half as wide again as it is tall.
    """
    return min(range(1, count + 1), key=lambda columns: max(columns * wide / 1.5, ceil(count / columns) * tall))


def _mosaic(pictures: Sequence[Pixels]) -> Pixels:
    """Pictures in rows and columns, each in the middle of its cell, with thin lines between the cells."""
    tall = max(pixels.shape[0] for pixels in pictures)
    wide = max(pixels.shape[1] for pixels in pictures)
    columns = _columns(len(pictures), wide, tall)
    rows = ceil(len(pictures) / columns)
    size = rows * (tall + LINE) - LINE, columns * (wide + LINE) - LINE
    sheet = np.full((*size, 3), DARK_GREY, dtype=np.uint8)
    for number in range(rows * columns):
        row, column = divmod(number, columns)
        top, left = row * (tall + LINE), column * (wide + LINE)
        cell = sheet[top : top + tall, left : left + wide]
        cell[:] = LIGHT_GREY
        if number < len(pictures):
            high, broad, _ = pictures[number].shape
            top, left = (tall - high) // 2, (wide - broad) // 2
            cell[top : top + high, left : left + broad] = pictures[number]
    return sheet
