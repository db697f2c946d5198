"""A panel per stage: the pictures of a sample in a mosaic, with dropped patches dimmed."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
from PIL import Image

from foveate.viz.canvas import fit
from foveate.viz.contact_sheet import choose
from foveate.viz.dim import Pixels
from foveate.viz.panel import DrawnTokens
from foveate.viz.showing import Media, Prefill, drawn_stages, frames_shown, stages_of

MOST = 6  # default maximum of pictures or frames drawn
SIDE = 170  # side of a square panel, in pixels; panels of other shapes have the same area
LONGEST = 26 / 17  # maximum side of a panel, relative to that of a square one
LINE = 2  # pixels between the pictures of a panel
DARK_GREY, LIGHT_GREY = 152, 232  # grey levels of the lines, and of the unused area of a cell


@dataclass(frozen=True, slots=True, eq=False)
class StagePanel:
    """The drawing of what a stage kept.

    Attributes:
        place: The position of the stage in the model, in words.
        layer: The decoder layer whose input is cut; None for other stages.
        before, after: Vision tokens before and after the stage.
        merges: True if rows may stand for several tokens.
        pixels: (height, width, 3) uint8.
        rows: True if `before` and `after` count rows of the tower, which are restored after the tower, instead of
            vision tokens.
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
        """True if the stage dropped or merged tokens."""
        return self.after < self.before


def stage_panels(prefill: Prefill, media: Media, side: int = SIDE, most: int = MOST) -> list[StagePanel]:
    """Draw a panel for each stage of a prefill of one sample, in order.

    Args:
        prefill: `trace.latest`.
        media: The pictures and clips, as for `Trace.show`.
        side: Side of a square panel, in pixels; panels of other shapes have the same area.
        most: Maximum number of pictures or frames; of more, evenly spaced ones are drawn.

    Raises:
        InputError: If the number of pictures or frames does not match the sample, or the positions of its tokens are
            unknown.
    """
    frames, _ = frames_shown(prefill, media, 0)
    tokens = DrawnTokens.of(len(frames), [frame.boxes for frame in frames], stages_of(prefill, 0))
    drawn = choose(len(frames), most)
    pictures = dict(zip(drawn, scale_pictures([frames[index].picture for index in drawn], side), strict=True))
    panels = []
    for record, stage in zip(drawn_stages(prefill, 0), tokens.stages, strict=True):
        mosaic = _mosaic([pixels for pixels, _ in tokens.panels(stage, pictures)])
        before, after = record.before[0], record.after[0]
        panels.append(StagePanel(record.place, record.layer, before, after, stage.merges, mosaic, record.rows))
    return panels


def plain_panel(pictures: Sequence[Image.Image], side: int = SIDE, most: int = MOST) -> Pixels:
    """Draw a panel of the undimmed pictures, at most `most` evenly spaced ones: (height, width, 3) uint8."""
    return _mosaic(scale_pictures([pictures[index] for index in choose(len(pictures), most)], side))


def scale_pictures(pictures: Sequence[Image.Image], side: int = SIDE, sharing: int = 1) -> list[Pixels]:
    """Resize pictures so that together they fill one panel.

    Args:
        pictures: One or more pictures.
        side: Side of a square panel, in pixels.
        sharing: Number of panels in the row; with more than 3, panels are smaller.
    """
    # The factor that scales each picture to area 1.
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
    """Return the number of columns at which pictures of this size are drawn largest.

    A panel may be 1.5 times as wide as tall.
    """
    return min(range(1, count + 1), key=lambda columns: max(columns * wide / 1.5, ceil(count / columns) * tall))


def _mosaic(pictures: Sequence[Pixels]) -> Pixels:
    """Arrange pictures in rows and columns, each centred in its cell, with thin lines between the cells."""
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
