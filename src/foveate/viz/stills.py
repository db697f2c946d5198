"""The kept patches drawn on the picture: a row an image, a panel a stage."""

from collections.abc import Sequence

from PIL import Image

from foveate.viz.canvas import Page, fit
from foveate.viz.panel import Boxes, Stages, Tokens

PANEL = 405  # pixels, the longer side of a panel
GAP = 18
TITLE_SIZE, CAPTION_SIZE, SMALL_SIZE = 11, 9.5, 8


def draw_stages(
    images: Sequence[Image.Image], boxes: Sequence[Boxes], stages: Stages, *, title: str | None = None
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
    tokens = Tokens.of(len(images), boxes, stages)
    pictures = {number: fit(image, PANEL / max(image.size)) for number, image in enumerate(images)}
    columns = [[(pixels, f"{count} tokens") for pixels, count in zip(pictures.values(), tokens.counts, strict=True)]]
    for stage in tokens.stages:
        drawn = zip(tokens.panels(stage, pictures), tokens.counts, strict=True)
        columns.append([(pixels, f"{kept} of {count}") for (pixels, kept), count in drawn])
    first = "the pictures"
    if len(images) == 1:  # its counts are in the captions
        first = "the picture"
        columns = [[(pixels, "") for pixels, _ in column] for column in columns]

    cell = max(pixels.shape[1] for pixels in pictures.values())
    page = Page(GAP + len(columns) * (cell + GAP))
    middle, inside = page.width / 2, page.width - 2 * GAP
    top = page.write(title or "", middle, GAP, TITLE_SIZE, room=inside, align="center", kind="bold")
    ends = []
    for number, caption in enumerate([first, *(stage.caption for stage in tokens.stages)]):
        centre = GAP + number * (cell + GAP) + cell / 2
        ends.append(page.write(caption, centre, top, CAPTION_SIZE, room=cell, align="center"))
    top = max(ends)
    for row in zip(*columns, strict=True):
        top = page.row(row, GAP, top, cell=cell, gap=GAP, size=SMALL_SIZE) + GAP
    if any(stage.merges for stage in tokens.stages):
        top = page.write(tokens.legend, middle, top, SMALL_SIZE, room=inside, kind="faint", align="center")
    return page.to_image(top)
