"""Drawing of colours, backgrounds, shapes and characters, with NumPy and Pillow only.

There are two styles. The smooth style, for scenes, uses masks with values from 0 to 1 and backgrounds of floats. The
hard style, for sketches and films, draws with Pillow without smoothing, like a user's own code.

All randomness comes from the generator that the caller passes. The picture of a seed depends on the order of the
draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from math import cos, pi, sin
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from foveate.plain.upstream import extra

Floats = NDArray[np.float32]
Rgb = tuple[int, int, int]
Point = tuple[float, float]
Mean = NDArray[np.float64]
"""A mean colour: (3,) float64, 0 to 255."""
Pixels = tuple[int, int, int, int]
"""Left, top, right and bottom of a box, in whole pixels."""

COLOURS: dict[str, Rgb] = {
    "red": (214, 30, 34),
    "green": (34, 158, 48),
    "blue": (36, 66, 222),
    "yellow": (244, 222, 36),
    "purple": (146, 42, 178),
    "orange": (246, 134, 22),
    "cyan": (34, 208, 222),
    "white": (244, 244, 244),
}
"""The colours of the smooth style."""

MEANT: dict[str, tuple[Rgb, ...]] = {
    "red": ((255, 0, 0), (220, 20, 60), (200, 0, 0), (229, 57, 53)),
    "green": ((0, 128, 0), (0, 255, 0), (0, 200, 0), (34, 139, 34), (76, 175, 80)),
    "blue": ((0, 0, 255), (30, 60, 200), (0, 0, 205), (33, 100, 243), (0, 90, 255)),
    "yellow": ((255, 255, 0), (255, 215, 0), (253, 225, 40)),
    "purple": ((128, 0, 128), (160, 32, 240), (148, 0, 211), (120, 40, 160)),
    "orange": ((255, 165, 0), (255, 140, 0), (255, 127, 20)),
    "cyan": ((0, 255, 255), (0, 200, 220), (0, 188, 212)),
    "white": ((255, 255, 255), (245, 245, 245)),
}
"""Shades that people use for a colour. The first one is the CSS colour of that name."""

# CSS's green is dark, but (0, 255, 0) is called green just as often.
PURE = {name: shades[:1] for name, shades in MEANT.items()} | {"green": MEANT["green"][:2]}
"""Shades that people get when they draw with the names of colours."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "moon")

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
"""Pillow's built-in font, and fonts of matplotlib."""

FINE = 8  # masks are drawn 8 times as large, then averaged down

COARSE = 96
"""Side in pixels at which the waves of a photograph are drawn."""

SEEN = 100.0
"""Smallest distance between a visible colour and its background: Euclidean, where black to white is 441."""

Option = TypeVar("Option")


def pick(rng: Generator, options: Sequence[Option]) -> Option:
    """Draw one of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """Draw a number whose logarithm is uniform, so that 20 to 40 is as likely as 40 to 80."""
    logarithm = rng.uniform(np.log(low), np.log(high))
    return float(np.exp(logarithm))


# Colours.


def rgb(values: ArrayLike) -> Rgb:
    """Return three numbers, or one for a grey, as a colour, rounded and clipped to 0 to 255."""
    rounded = np.round(np.full(3, values))
    red, green, blue = rounded.clip(0, 255).astype(int).tolist()
    return red, green, blue


def tint(rng: Generator, name: str) -> Rgb:
    """Draw a shade that people use for a colour, exact or slightly off."""
    shade = pick(rng, MEANT[name]) if rng.random() < 0.6 else MEANT[name][0]
    if rng.random() < 0.6:
        return shade
    return rgb(np.add(shade, rng.uniform(-18, 18, 3)))


def stands_out(image: Image.Image, box: Pixels, colour: Rgb) -> bool:
    """True if a colour can be told from the mean colour of a box."""
    return distance(mean_colour(image, box), colour) >= SEEN


def ink_on(rng: Generator, image: Image.Image, box: Pixels, plate: bool) -> Rgb:
    """Draw an ink colour that stands out from the background, and paint the plate under the text if `plate`."""
    under = mean_colour(image, box)
    if plate:
        colour = _contrasting(rng, under, 0.5, SEEN, 90)
        _, top, _, bottom = box
        radius = int(rng.integers(0, 2)) * (bottom - top) // 6
        ImageDraw.Draw(image).rounded_rectangle(box, radius, colour)
        under = np.array(colour, dtype=np.float64)
    return _contrasting(rng, under, 0.3, 150, 150)


def _contrasting(rng: Generator, under: Mean, share: float, apart: float, grey_apart: float) -> Rgb:
    """Draw a colour that contrasts with the background `under`.

    With probability `share` it is one of the named colours at a distance of more than `apart`, else nearly black or
    white, preferably at a distance of more than 1.2 `grey_apart`.
    """
    if rng.random() < share:
        every = chain.from_iterable(MEANT.values())
        clear = [shade for shade in every if distance(shade, under) > apart]
        if clear:
            return pick(rng, clear)
        grey_apart = apart
    # Black or white, whichever stands out; at random if both do.
    black = rgb(rng.uniform(0, 30))
    white = rgb(rng.uniform(230, 255))
    clear = [tone for tone in (black, white) if distance(tone, under) > grey_apart * 1.2]
    if clear:
        return pick(rng, clear)
    return max(black, white, key=lambda tone: abs(tone[0] - under.mean()))


def mean_colour(image: Image.Image, box: Pixels) -> Mean:
    """Return the mean colour inside a box."""
    pixel = image.crop(box).resize((1, 1), Image.Resampling.BOX)
    return np.array(pixel, dtype=np.float64).reshape(3)


def distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the Euclidean distance between two colours; black to white is 441."""
    return float(np.linalg.norm(np.subtract(first, second)))


# Backgrounds of the smooth style.


def background(rng: Generator, side: int) -> Floats:
    """Draw a tinted gradient with slow noise, stripes and faint strokes: (side, side, 3) float32, 0 to 255."""
    knots = 5
    tone = rng.uniform(75, 150) + rng.uniform(-24, 24, 3)
    slope = rng.uniform(-28, 28, (2, 3))
    line = np.linspace(-0.5, 0.5, knots)
    down = slope[0] * line[:, None, None]
    across = slope[1] * line[None, :, None]
    noise = rng.normal(0, 7, (knots, knots, 3))
    coarse = (tone + down + across + noise).astype(np.float32)
    spread = _spread(side, knots)
    # (knots, knots, 3) -> (side, knots, 3) -> (side, side, 3)
    rows = np.einsum("ya,abc->ybc", spread, coarse)
    canvas = np.matmul(spread, rows)
    relief = _stripes(rng, side) + _strokes(rng, side)
    return np.asarray(canvas + relief[:, :, None], dtype=np.float32)


@lru_cache(maxsize=16)
def _spread(side: int, knots: int) -> Floats:
    """Return the matrix that interpolates `knots` values smoothly to `side` pixels: (side, knots) float32.

    Each row has at most two weights, for the knots before and after the pixel.
    """
    rows = np.arange(side)
    middles = rows.astype(np.float32) + 0.5
    at = middles / side * (knots - 1)
    low = np.minimum(at.astype(np.int64), knots - 2)
    part = at - low
    part = part * part * (3 - 2 * part)  # a smooth step: flat at each knot
    matrix = np.zeros((side, knots), dtype=np.float32)
    matrix[rows, low] = 1 - part
    matrix[rows, low + 1] = part
    return matrix


def _stripes(rng: Generator, side: int) -> Floats:
    """Draw a faint plane wave with a period of 6 to 40 pixels: (side, side) float32 around 0."""
    angle = rng.uniform(0, 2 * pi)
    period = rng.uniform(6, 40)
    phase = rng.uniform(0, 2 * pi)
    line = np.arange(side, dtype=np.float32) * (2 * pi / period)
    across = line * cos(angle) + phase
    down = line * sin(angle)
    # sin(down + across) = cos(down) sin(across) + sin(down) cos(across) at each pixel
    wave = np.outer(np.cos(down), np.sin(across))
    wave += np.outer(np.sin(down), np.cos(across))
    return np.asarray(rng.uniform(0, 7) * wave, dtype=np.float32)


def _strokes(rng: Generator, side: int) -> Floats:
    """Draw faint lines, circles and boxes as clutter that is not an object: (side, side) float32 around 0."""
    image = Image.new("L", (side, side), 128)
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(2, 5) * side / 84)
    places = rng.uniform(-0.05, 1.0, (count, 2)) * side
    extents = rng.uniform(5, 34, (count, 2))
    kinds = rng.integers(0, 4, count)
    greys = 128 + rng.integers(-15, 16, count)
    for (x, y), (width, height), kind, grey in zip(places, extents, kinds, greys.tolist(), strict=True):
        box = (x, y, x + width, y + height)
        if kind == 0:
            draw.line(box, grey, width=2)
        elif kind == 1:
            draw.ellipse(box, outline=grey, width=2)
        elif kind == 2:
            draw.ellipse(box, grey)
        else:
            draw.rectangle(box, outline=grey, width=2)
    return np.asarray(image, dtype=np.float32) - 128


def plain_ground(rng: Generator, side: int) -> Floats:
    """Draw a uniform background, mostly white or light, sometimes dark: (side, side, 3) float32, 0 to 255."""
    kind = rng.random()
    tone: ArrayLike
    if kind < 0.4:
        tone = rng.uniform(246, 255)
    elif kind < 0.65:
        tone = rng.uniform(185, 245) + rng.uniform(-10, 10, 3)
    elif kind < 0.85:
        tone = rng.uniform(60, 165) + rng.uniform(-20, 20, 3)
    else:
        tone = rng.uniform(0, 40)
    return np.full((side, side, 3), np.round(tone), dtype=np.float32)


# Backgrounds of the hard style.


def ground(rng: Generator, side: int) -> Image.Image:
    """Draw a background: white, a uniform tone, a gradient, or a blurred photograph. RGB, `side` x `side` pixels."""
    kind = rng.random()
    if kind < 0.3:
        return Image.new("RGB", (side, side), "white")
    if kind < 0.6:
        return Image.new("RGB", (side, side), _tone(rng))
    if kind < 0.72:
        return _gradient(rng, side)
    return _photograph(rng, side)


def _tone(rng: Generator) -> Rgb:
    """Draw a tone: light, nearly black, any colour, grey, or tinted grey."""
    kind = rng.random()
    if kind < 0.35:
        return rgb(rng.uniform(205, 255, 3))
    if kind < 0.5:
        return rgb(rng.uniform(0, 30))
    if kind < 0.65:
        return rgb(rng.uniform(0, 255, 3))
    if kind < 0.82:
        return rgb(rng.uniform(30, 230) + rng.uniform(-6, 6, 3))
    return rgb(rng.uniform(40, 190) + rng.uniform(-45, 45, 3))


def _gradient(rng: Generator, side: int) -> Image.Image:
    """Draw a gradient between two tones, from left to right or from top to bottom."""
    first = _tone(rng)
    last = _tone(rng)
    size = (1, 2) if rng.random() >= 0.5 else (2, 1)
    ends = Image.new("RGB", size)
    ends.putdata([first, last])
    return ends.resize((side, side), Image.Resampling.BILINEAR)


def _photograph(rng: Generator, side: int) -> Image.Image:
    """Draw noise at several scales around a tone, a few soft shapes, and in 70 % of the cases a fine grain."""
    tone = np.array(_tone(rng), dtype=np.float64)
    image = _waves(rng, tone)
    _blobs(rng, image, tone)
    blur = ImageFilter.GaussianBlur(rng.uniform(0.5, 4))
    image = image.filter(blur).resize((side, side))
    if rng.random() < 0.3:
        return image
    half = -(-side // 2)  # rounded up; the dots of the grain are 2 pixels wide
    dots = rng.integers(-12, 13, (half, half))
    grain = np.kron(dots, np.ones((2, 2)))[:side, :side, None]  # (half, half) -> (side, side, 1)
    return _from_values(np.asarray(image) + grain * rng.random())


def _waves(rng: Generator, tone: NDArray[np.float64]) -> Image.Image:
    """Draw noise of five wavelengths on a tone: RGB, `COARSE` x `COARSE` pixels."""
    strength = rng.uniform(8, 30)
    fall = rng.uniform(0.3, 1.0)
    values = np.full((COARSE, COARSE, 3), tone)
    for knots in (3, 6, 12, 24, 48):
        grey = rng.normal(0, 1, (knots, knots, 1))
        coloured = grey + rng.normal(0, 0.35, (knots, knots, 3))
        small = _from_values(128 + 30 * coloured)
        smooth = small.resize((COARSE, COARSE), Image.Resampling.BICUBIC)
        wave = np.asarray(smooth, dtype=np.float64) - 128
        values += wave / 30 * strength * (6 / knots) ** fall
    return _from_values(values)


def _blobs(rng: Generator, image: Image.Image, tone: NDArray[np.float64]) -> None:
    """Draw up to five discs or boxes in nearly the tone of the background."""
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 6)):
        x, y = rng.uniform(-20, COARSE, 2).tolist()
        width, height = rng.uniform(8, 60, 2).tolist()
        shade = rgb(tone + rng.normal(0, 25, 3))
        paint = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        paint((x, y, x + width, y + height), shade)


def _from_values(values: NDArray[np.float64]) -> Image.Image:
    """Convert (height, width, 3) numbers to an RGB image; values are clipped and truncated."""
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


# Shapes of the smooth style.

# Discs, each with the box of the disc that is cut out of it, if any, in shares of the mask's side.
DISCS: dict[str, tuple[float, ...]] = {
    "circle": (),
    "ring": (0.27, 0.27, 0.73, 0.73),
    "moon": (0.38, 0.02, 1.2, 0.84),
}
# Left, top, right and bottom of the bars, in shares of the mask's side.
BARS = {
    "square": ((0.06, 0.06, 0.94, 0.94),),
    "cross": ((0.34, 0, 0.66, 1), (0, 0.34, 1, 0.66)),
}


def star(inner: float) -> tuple[Point, ...]:
    """Return the ten corners of a star in a square from -1 to 1, y downwards.

    The spikes have length 1, and the notches are `inner` from the centre.
    """
    corners = []
    for number, radius in enumerate((1.0, inner) * 5):
        angle = pi * number / 5
        corners.append((radius * sin(angle), -radius * cos(angle)))
    return tuple(corners)


# Corners in a square from -1 to 1, y downwards.
POLYGONS: dict[str, tuple[Point, ...]] = {
    "triangle": ((0, -0.95), (1, 0.85), (-1, 0.85)),
    "diamond": ((0, -1), (0.8, 0), (0, 1), (-0.8, 0)),
    "star": star(0.42),
}


@lru_cache(maxsize=512)
def shape_mask(shape: str, size: int) -> Floats:
    """Return the coverage of a shape in a square of `size` pixels: (size, size) float32 in [0, 1]."""
    big = size * FINE
    image = Image.new("L", (big, big))
    draw = ImageDraw.Draw(image)
    if shape in DISCS:
        draw.ellipse((0, 0, big - 1, big - 1), 255)
        if hole := DISCS[shape]:
            draw.ellipse([big * edge for edge in hole], 0)
    elif shape in BARS:
        for bar in BARS[shape]:
            draw.rectangle([big * edge for edge in bar], 255)
    else:
        corners = [((x + 1) * big / 2, (y + 1) * big / 2) for x, y in POLYGONS[shape]]
        draw.polygon(corners, 255)
    return _coverage(image, size, size)


def _coverage(image: Image.Image, width: int, height: int) -> Floats:
    """Average an image down to a read-only mask: (height, width) float32 in [0, 1]."""
    small = image.resize((width, height), Image.Resampling.BOX)
    mask = np.asarray(small, dtype=np.float32) / np.float32(255)
    mask.flags.writeable = False
    return mask


# Shapes of the hard style.


@dataclass(frozen=True, slots=True)
class Pen:
    """The style in which the things of a picture are drawn.

    Attributes:
        line: "filled", "edged" (filled, with a border of another colour) or "outlined" (only the border).
        width: Width of the border or outline, as a share of a thing's size.
        edge: Colour of the border.
        form: Proportions of each shape, from its narrowest (0) to its widest (1) form.
    """

    line: str
    width: float
    edge: Rgb
    form: float

    @classmethod
    def draw_lot(cls, rng: Generator) -> "Pen":
        """Draw a random pen, mostly filled."""
        line = rng.choice(["filled", "edged", "outlined"], p=[0.68, 0.16, 0.16])
        edge = (0, 0, 0) if rng.random() < 0.7 else (70, 70, 70)
        return cls(str(line), rng.uniform(0.02, 0.07), edge, rng.random())


def draw_shape(
    image: Image.Image, shape: str, centre: Point, size: float, pen: Pen, colours: tuple[Rgb, Rgb] | tuple[int, int]
) -> None:
    """Draw a shape, about `size` pixels wide and high, with a border if the pen has one.

    `colours` are those of the shape and of the border.
    """
    colour, edge = colours
    draw = ImageDraw.Draw(image)
    x, y = centre
    half = size / 2
    box = (x - half, y - half, x + half, y + half)
    if shape == "ring":
        thick = size * (0.13 + 0.13 * pen.form)
        draw.ellipse(box, outline=colour, width=max(3, round(thick)))
        return
    # Colours of the inside and of the border for each kind of line; None is not drawn.
    inks = {"filled": (colour, None), "edged": (colour, edge), "outlined": (None, colour)}
    inside, border = inks[pen.line]
    width = max(1, round(pen.width * size))
    if shape == "circle":
        draw.ellipse(box, inside, border, width)
        return
    corners = _corners(round(pen.form, 1))[shape]
    places = [(x + across * half, y + down * half) for across, down in corners]
    draw.polygon(places, inside, border, width)


@lru_cache(maxsize=16)
def _corners(form: float) -> dict[str, tuple[Point, ...]]:
    """Return the corners of each shape except circle and ring, in a square from -1 to 1, y downwards."""
    square = 0.88 + 0.1 * form
    base = 0.75 + 0.2 * form
    across = 0.68 + 0.3 * form
    arm = 0.22 + 0.2 * form
    return {
        "square": _mirror([(square, square)]),
        "triangle": ((0, -0.97), (1, base), (-1, base)),
        "diamond": ((0, -1), (across, 0), (0, 1), (-across, 0)),
        "cross": _mirror([(arm, 1), (arm, arm), (1, arm)]),
        "star": star(0.36 + 0.12 * form),
        "moon": _moon(form),
    }


def _mirror(quarter: list[Point]) -> tuple[Point, ...]:
    """Mirror the corners of the lower right quarter to all four quarters, in order around the shape."""
    turned = quarter[::-1]
    return (
        *((x, -y) for x, y in quarter),
        *turned,
        *((-x, y) for x, y in quarter),
        *((-x, -y) for x, y in turned),
    )


def _moon(form: float) -> tuple[Point, ...]:
    """Return the corners of a moon: a disc minus another of 0.85 its radius, to the upper right or to the right."""
    away = 0.42 + 0.2 * form
    opening = -pi / 5 if form < 0.6 else 0.0
    x = away * cos(opening)
    y = away * sin(opening)
    turn = np.linspace(0, 2 * pi, 73)[:-1]
    circle = [(cos(angle), sin(angle)) for angle in turn]
    # The edge of the disc outside the other one (0.72 is about 0.85²), and the edge of the other one inside the disc.
    outer = [(a, b) for a, b in circle if (a - x) ** 2 + (b - y) ** 2 >= 0.72]
    hole = [(x + 0.85 * a, y + 0.85 * b) for a, b in circle]
    inner = [(a, b) for a, b in hole if a * a + b * b <= 1]
    # Around the disc from the opening, then back along the hole.
    outer.sort(key=lambda point: _turn_from(point[0], point[1], opening))
    inner.sort(key=lambda point: -_turn_from(point[0] - x, point[1] - y, opening))
    return (*outer, *inner)


def _turn_from(x: float, y: float, opening: float) -> float:
    """Return the angle of a point around (0, 0), measured from the opening, in [0, 2π)."""
    return float((np.arctan2(y, x) - opening) % (2 * pi))


# Characters of the smooth style.


@lru_cache(maxsize=2048)
def glyph(character: str, size: int) -> Floats:
    """Return the coverage of a character of Pillow's built-in font: (size, advance) float32 in [0, 1].

    The width is `glyph_advance`.
    """
    large = font("built in", 2 * size)
    width = glyph_advance(character, size)
    image = Image.new("L", (2 * width, 2 * size))
    left, _, right, _ = large.getbbox(character)
    _, top, _, bottom = large.getbbox("H")
    start = (width - (left + right) / 2, size - (top + bottom) / 2)
    # Drawn at twice the size with a thin outline, so that strokes are 3 px wide instead of 2.
    ImageDraw.Draw(image).text(start, character, 255, large, stroke_width=1)
    return _coverage(image, width, size)


@lru_cache(maxsize=2048)
def glyph_advance(character: str, size: int) -> int:
    """Return the pixels from this character to the next; always more than a patch of 14."""
    left, _, right, _ = font("built in", size).getbbox(character)
    return max(15, int(right - left) + 3)


# Characters of the hard style.


@lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """Load one of `FONTS` at a size in pixels."""
    if name == "built in":
        built_in = ImageFont.load_default(size)
        assert isinstance(built_in, ImageFont.FreeTypeFont)
        return built_in
    with extra("cli", "Texts in drawings need matplotlib's fonts"):
        from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def draw_characters(
    image: Image.Image, characters: str, start: Point, face: ImageFont.FreeTypeFont, ink: Rgb, bold: bool
) -> list[tuple[float, tuple[int, int], Image.Image]]:
    """Draw one line of text.

    Args:
        image: The image to draw on.
        characters: The text.
        start: The left end of the line, at half its height.
        face: The font.
        ink: The colour.
        bold: Thicken each stroke on both sides, by a 24th of the size.

    Returns:
        For each character the x of its centre in pixels, and the upper left corner and the mask of its pixels.
    """
    pen, middle = start
    draw = ImageDraw.Draw(image)
    _, top, _, bottom = face.getbbox("H", anchor="ls")
    baseline = middle - (top + bottom) / 2
    size = round(face.size)
    stroke = max(1, size // 24) if bold else 0
    drawn = []
    for character in characters:
        draw.text((pen, baseline), character, ink, face, "ls", stroke_width=stroke)
        # Drawn again with one bit per pixel, for the owner map, whose pixels have a single owner.
        mask = Image.new("1", (3 * size, 3 * size))
        left = int(pen) - size
        upper = int(baseline) - 2 * size
        at = (pen - left, baseline - upper)
        ImageDraw.Draw(mask).text(at, character, 1, face, "ls", stroke_width=stroke)
        end = pen + face.getlength(character)
        drawn.append(((pen + end) / 2, (left, upper), mask))
        pen = end
    return drawn
