"""Comparison of several methods on one prompt: the pictures, then a row per method with a small panel per stage."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from foveate.errors import ShapeError
from foveate.viz.canvas import LEGEND, PLAIN_LEGEND, Page, line_height
from foveate.viz.contact_sheet import Frame, choose
from foveate.viz.dim import Pixels
from foveate.viz.mosaic import MOST, SIDE, scale_pictures, stage_panels
from foveate.viz.showing import Media, Prefill, frames_shown

LABEL = 230  # width of a row's label, in pixels
MARGIN, GAP = 18, 12
TITLE_SIZE, LABEL_SIZE, CAPTION_SIZE = 10, 8, 6.5
ALREADY_READ = " Earlier layers have read what a later one drops, so an answer can be right with few tokens left."


def draw_comparison(prefills: Sequence[tuple[str, Prefill]], media: Media, title: str = "") -> Image.Image:
    """Draw what several methods kept of the same pictures: first the pictures, then a row per method.

    A row has a small panel for each stage that dropped or merged tokens, with dropped patches dimmed as in
    `Trace.show`. Several pictures share a panel. Of more than six pictures or frames, six evenly spaced ones are drawn.

    Args:
        prefills: For each method the label of its row, such as its name and answer, and the record of its prefill,
            `trace.latest`.
        media: The pictures and clips, as for `Trace.show`.
        title: A line at the top.

    Raises:
        InputError: If the number of pictures or frames does not match the prompt, or the positions of its tokens are
            unknown.
        ShapeError: If there are no methods.
    """
    if not prefills:
        raise ShapeError("There is no method to draw. Give one or more.")
    frames, moving = frames_shown(prefills[0][1], media, 0)
    rows = [_originals(frames, "frame" if moving else "picture")]
    legend = PLAIN_LEGEND
    for label, prefill in prefills:
        stages = [stage for stage in stage_panels(prefill, media) if stage.dropped]
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
    if any(stage.layer for _, prefill in prefills for stage in prefill.stages):
        legend += ALREADY_READ
    top = page.write(legend, MARGIN, top, CAPTION_SIZE, room=inside, kind="faint")
    return page.to_image(top + MARGIN / 2)


def _originals(frames: Sequence[Frame], word: str) -> tuple[str, list[tuple[Pixels, str]]]:
    """Return the label and the undimmed pictures of the first row. `word` is "picture" or "frame"."""
    drawn = choose(len(frames), MOST)
    panels = []
    for index in drawn:
        (pixels,) = scale_pictures([frames[index].picture], sharing=len(drawn))
        panels.append((pixels, f"{frames[index].label}: {len(np.asarray(frames[index].boxes))} tokens"))
    label = f"the {word}"
    if len(frames) > 1:
        label = f"the {len(frames)} {word}s"
    if len(drawn) < len(frames):
        label = f"{len(drawn)} of {label}"
    return label, panels
