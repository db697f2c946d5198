"""Shapes and characters as people draw them: not smoothed; filled, edged or outlined; in several fonts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from foveate.embedded.grounds import Rgb

__all__ = ["FONTS", "Look", "advances", "draw_characters", "draw_shape", "font"]

FONTS = (
    "built in",
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralBol",
    "cmss10",
)
"""Pillow's own, and fonts that come with matplotlib."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Look:
    """How the things of a sketch are drawn.

    Attributes:
        line: "filled", "edged" (filled, with a border of another colour) or "outlined" (the border alone).
        width: Of border or outline, as a share of a thing's size.
        edge: The border's colour.
        form: Where each shape stands between its narrowest and its widest form, 0 to 1.
    """

    line: str
    width: float
    edge: Rgb
    form: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> "Look":
        """A look by lot: mostly filled."""
        line = str(rng.choice(["filled", "edged", "outlined"], p=[0.68, 0.16, 0.16]))
        edge = (0, 0, 0) if rng.random() < 0.7 else (70, 70, 70)
        return cls(line, float(rng.uniform(0.02, 0.07)), edge, float(rng.random()))


def draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, centre: Point, size: float, colour: Rgb | int, look: Look, edge: Rgb | int
) -> None:
    """Draw one shape; its bounding box is about `size` wide and high, in the canvas's pixels."""
    width = max(1, round(look.width * size))
    half = size / 2
    box = centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half
    if shape == "ring":
        draw.ellipse(box, outline=colour, width=max(3, round(size * (0.13 + 0.13 * look.form))))
        return
    fill = None if look.line == "outlined" else colour
    border = {"filled": None, "edged": edge, "outlined": colour}[look.line]
    if shape == "circle":
        draw.ellipse(box, fill=fill, outline=border, width=width)
        return
    corners = [(centre[0] + x * half, centre[1] + y * half) for x, y in _corners(shape, round(look.form, 1))]
    if look.line == "filled":
        draw.polygon(corners, fill=fill)
    else:
        draw.polygon(corners, fill=fill, outline=border, width=width)


@lru_cache(maxsize=256)
def _corners(shape: str, form: float) -> tuple[Point, ...]:
    """The corners in a square from -1 to 1, y downwards."""
    if shape == "square":
        return _mirrored([(0.88 + 0.1 * form,) * 2])
    if shape == "triangle":
        base = 0.75 + 0.2 * form
        return (0, -0.97), (1, base), (-1, base)
    if shape == "diamond":
        across = 0.68 + 0.3 * form
        return (0, -1), (across, 0), (0, 1), (-across, 0)
    if shape == "cross":
        arm = 0.22 + 0.2 * form
        return _mirrored([(arm, 1), (arm, arm), (1, arm)])
    if shape == "star":
        inner = 0.36 + 0.12 * form
        spikes = [(1.0 if i % 2 == 0 else inner, pi * i / 5) for i in range(10)]
        return tuple((r * sin(a), -r * cos(a)) for r, a in spikes)
    if shape == "moon":
        return _moon(form)
    raise ValueError(f"No shape is called {shape!r}.")


def _mirrored(quarter: Sequence[Point]) -> tuple[Point, ...]:
    """The corners of all four quarters in turn, from those of the lower right one."""
    turned = list(quarter)[::-1]
    return (
        *((x, -y) for x, y in quarter),
        *turned,
        *((-x, y) for x, y in quarter),
        *((-x, -y) for x, y in turned),
    )


def _moon(form: float) -> tuple[Point, ...]:
    """A disc without another of nearly its size, up and to the right, or straight to the right."""
    away = 0.42 + 0.2 * form
    angle = -pi / 5 if form < 0.6 else 0.0
    x, y = away * cos(angle), away * sin(angle)
    turn = np.linspace(0, 2 * pi, 73)[:-1]
    outer = [(cos(t), sin(t)) for t in turn if (cos(t) - x) ** 2 + (sin(t) - y) ** 2 >= 0.72]
    inner = [(x + 0.85 * cos(t), y + 0.85 * sin(t)) for t in turn]
    inner = [(a, b) for a, b in inner if a * a + b * b <= 1]
    opening = angle
    outer.sort(key=lambda p: (np.arctan2(p[1], p[0]) - opening) % (2 * pi))
    inner.sort(key=lambda p: -((np.arctan2(p[1] - y, p[0] - x) - opening) % (2 * pi)))
    return (*outer, *inner)


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """One of `FONTS` at a size in pixels."""
    if name == "built in":
        found = ImageFont.load_default(size)
        assert isinstance(found, ImageFont.FreeTypeFont)
        return found
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def advances(characters: str, name: str, size: int) -> list[float]:
    """How far each character moves the pen, in pixels."""
    return [font(name, size).getlength(character) for character in characters]


def draw_characters(
    image: Image.Image,
    owner: Image.Image,
    characters: str,
    at: Point,
    name: str,
    size: int,
    ink: Rgb,
    bold: bool,
    first: int = 255,
) -> list[Point]:
    """Write from the left end of a line's middle; `owner` gets `first` for the first character, one less for the next.

    Returns:
        The left and the right end of each character's cell.
    """
    pen, face = at[0], font(name, size)
    draw = ImageDraw.Draw(image)
    stroke = max(1, size // 24) if bold else 0
    top, bottom = face.getbbox("H", anchor="ls")[1::2]
    line = at[1] - (top + bottom) / 2
    cells = []
    for place, (character, step) in enumerate(zip(characters, advances(characters, name, size), strict=True)):
        draw.text((pen, line), character, fill=ink, font=face, anchor="ls", stroke_width=stroke, stroke_fill=ink)
        corner = int(pen) - size, int(line) - 2 * size
        mask = Image.new("1", (3 * size, 3 * size))
        start = pen - corner[0], line - corner[1]
        ImageDraw.Draw(mask).text(start, character, fill=1, font=face, anchor="ls", stroke_width=stroke, stroke_fill=1)
        owner.paste(first - place, corner, mask)
        cells.append((pen, pen + step))
        pen += step
    return cells
