"""Kept patches drawn on pictures: a row per image, a panel per stage."""

from collections.abc import Sequence

from PIL import Image

from foveate.viz.canvas import Page, fit
from foveate.viz.panel import Boxes, DrawnTokens, Stages

PANEL = 405  # longer side of a panel, in pixels
GAP = 18
CAPTION_SIZE, SMALL_SIZE = 9.5, 8


def draw_stages(images: Sequence[Image.Image], boxes: Sequence[Boxes], stages: Stages) -> Image.Image:
    """Draw what each stage kept: every image unchanged, then once per stage with dropped patches dimmed.

    Args:
        images: The images of one sample, in order.
        boxes: For each image (tokens, 4), the x0, y0, x1, y1 of each vision token in [0, 1]. A row of NaN is a token
            without a position in the image, such as a newline or CLS.
        stages: (caption, kept) of each stage, in order. `kept` are ordinals that count through the tokens of all
            images. A stage that merges is (caption, origin, assign): the token that each row stands for (−1: none),
            and the row that each token was merged into (−1: dropped).

    Raises:
        ShapeError: If there are no images, images and boxes differ in number, a box array is not (tokens, 4), or an
            ordinal is out of range.
    """
    tokens = DrawnTokens.of(len(images), boxes, stages)
    pictures = {number: fit(image, PANEL / max(image.size)) for number, image in enumerate(images)}
    columns = [[(pixels, f"{count} tokens") for pixels, count in zip(pictures.values(), tokens.counts, strict=True)]]
    for stage in tokens.stages:
        drawn = zip(tokens.panels(stage, pictures), tokens.counts, strict=True)
        columns.append([(pixels, f"{kept} of {count}") for (pixels, kept), count in drawn])
    first = "the pictures"
    if len(images) == 1:  # the stage captions contain its counts
        first = "the picture"
        columns = [[(pixels, "") for pixels, _ in column] for column in columns]

    cell = max(pixels.shape[1] for pixels in pictures.values())
    page = Page(GAP + len(columns) * (cell + GAP))
    middle, inside = page.width / 2, page.width - 2 * GAP
    ends = []
    for number, caption in enumerate([first, *(stage.caption for stage in tokens.stages)]):
        centre = GAP + number * (cell + GAP) + cell / 2
        ends.append(page.write(caption, centre, GAP, CAPTION_SIZE, room=cell, align="center"))
    top = max(ends)
    for row in zip(*columns, strict=True):
        top = page.row(row, GAP, top, cell=cell, gap=GAP, size=SMALL_SIZE) + GAP
    if any(stage.merges for stage in tokens.stages):
        top = page.write(tokens.legend, middle, top, SMALL_SIZE, room=inside, kind="faint", align="center")
    return page.to_image(top)
