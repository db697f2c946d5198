"""Several methods on one prompt: its pictures once, then a row a method, a small panel a stage."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.errors import ShapeError
from foveate.viz.canvas import LEGEND, PLAIN_LEGEND, Page, line_height
from foveate.viz.dim import Pixels
from foveate.viz.frames import Frame, choose
from foveate.viz.mosaic import MOST, SIDE, scale, stage_panels
from foveate.viz.showing import Media, Prefill, frames_of

LABEL = 230  # pixels for the name of a row
MARGIN, GAP = 18, 12
TITLE_SIZE, LABEL_SIZE, CAPTION_SIZE = 10, 8, 6.5


def draw_comparison(
    prefills: Sequence[tuple[str, Prefill]], media: Media, title: str = "", sample: int = 0
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
    rows = [_originals(frames, "frame" if moving else "picture")]
    legend = PLAIN_LEGEND
    for label, prefill in prefills:
        stages = [stage for stage in stage_panels(prefill, media, sample) if stage.dropped]
        if any(stage.merges for stage in stages):
            legend = LEGEND
        rows.append((label, [(stage.pixels, f"{stage.place}: {stage.after}") for stage in stages]))

    cells = [max((pixels.shape[1] for pixels, _ in panels), default=SIDE) for _, panels in rows]
    widest = max(len(panels) * (cell + GAP) for cell, (_, panels) in zip(cells, rows, strict=True))
    page = Page(2 * MARGIN + LABEL + GAP + widest)
    inside, left = page.width - 2 * MARGIN, MARGIN + LABEL + GAP
    top = page.write(title, MARGIN, MARGIN / 2, TITLE_SIZE, room=inside, kind="bold") + MARGIN / 2
    for cell, (label, panels) in zip(cells, rows, strict=True):
        if panels:
            below = page.row(panels, left, top, cell=cell, gap=GAP, size=CAPTION_SIZE)
        else:
            below = page.write("Nothing was dropped.", left, top - 3, LABEL_SIZE, room=LABEL, kind="faint")
        most = max(3, int((below - top) / line_height(LABEL_SIZE)))
        top = max(below, page.write(label, MARGIN, top - 3, LABEL_SIZE, room=LABEL, lines=most)) + GAP
    top = page.write(legend, MARGIN, top, CAPTION_SIZE, room=inside, kind="faint")
    return page.to_image(top + MARGIN / 2)


def _originals(frames: Sequence[Frame], word: str) -> tuple[str, list[tuple[Pixels, str]]]:
    """The pictures as they are, with their label; `word` says what each is."""
    drawn = choose(len(frames), MOST)
    panels = []
    for index in drawn:
        (pixels,) = scale([frames[index].picture], sharing=len(drawn))
        panels.append((pixels, f"{frames[index].label}: {len(np.asarray(frames[index].boxes))} tokens"))
    label = f"the {word}"
    if len(frames) > 1:
        label = f"the {len(frames)} {word}s"
    if len(drawn) < len(frames):
        label = f"{len(drawn)} of {label}"
    return label, panels
