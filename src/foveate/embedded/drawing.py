"""How a synthetic picture is painted: background, clutter, shapes, characters.

NumPy and Pillow only. Every function is a pure function of its arguments; randomness comes in
through the generator that the caller passes.
"""

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["COLOURS", "PURE", "SHAPES", "background", "glyph", "glyph_advance", "plain", "shape_mask"]

Array = NDArray[np.float32]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 30, 34),
    "green": (34, 158, 48),
    "blue": (36, 66, 222),
    "yellow": (244, 222, 36),
    "purple": (146, 42, 178),
    "orange": (246, 134, 22),
    "cyan": (34, 208, 222),
    "white": (244, 244, 244),
}

PURE: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((255, 0, 0),),
    "green": ((0, 128, 0), (0, 255, 0)),
    "blue": ((0, 0, 255),),
    "yellow": ((255, 255, 0),),
    "purple": ((128, 0, 128),),
    "orange": ((255, 165, 0),),
    "cyan": ((0, 255, 255),),
    "white": ((255, 255, 255),),
}
"""What people take when they draw with the colours' names."""

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "moon")

FINE = 8  # masks are drawn this much larger, then averaged down


@lru_cache(maxsize=512)
def shape_mask(shape: str, size: int) -> Array:
    """Coverage of a shape in a square of `size` pixels: (size, size) float32 in [0, 1]."""
    big = size * FINE
    image = Image.new("L", (big, big))
    draw = ImageDraw.Draw(image)

    def place(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        """Unit square (-1 to 1, y downwards) -> pixels of the large image."""
        return [((x + 1) * big / 2, (y + 1) * big / 2) for x, y in points]

    if shape in ("circle", "ring", "moon"):
        draw.ellipse((0, 0, big - 1, big - 1), fill=255)
        if shape == "ring":
            draw.ellipse((big * 0.27, big * 0.27, big * 0.73, big * 0.73), fill=0)
        if shape == "moon":
            draw.ellipse((big * 0.38, big * 0.02, big * 1.2, big * 0.84), fill=0)
    elif shape == "square":
        draw.rectangle((big * 0.06, big * 0.06, big * 0.94, big * 0.94), fill=255)
    elif shape == "triangle":
        draw.polygon(place([(0, -0.95), (1, 0.85), (-1, 0.85)]), fill=255)
    elif shape == "diamond":
        draw.polygon(place([(0, -1), (0.8, 0), (0, 1), (-0.8, 0)]), fill=255)
    elif shape == "cross":
        draw.rectangle((big * 0.34, 0, big * 0.66, big), fill=255)
        draw.rectangle((0, big * 0.34, big, big * 0.66), fill=255)
    elif shape == "star":
        spikes = [(1.0 if i % 2 == 0 else 0.42, pi * i / 5) for i in range(10)]
        draw.polygon(place([(r * sin(a), -r * cos(a)) for r, a in spikes]), fill=255)
    else:
        raise ValueError(f"No shape is called {shape!r}. The shapes are: {', '.join(SHAPES)}.")
    small = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=np.float32) / np.float32(255)
    small.flags.writeable = False
    return small


@lru_cache(maxsize=2048)
def glyph(character: str, size: int) -> Array:
    """Coverage of one character of Pillow's built-in font: (height, advance) float32 in [0, 1].

    All characters of one `size` share a height; widths are `glyph_advance`.
    """
    font = ImageFont.load_default(2 * size)
    width = glyph_advance(character, size)
    image = Image.new("L", (2 * width, 2 * size))
    left, _, right, _ = font.getbbox(character)
    _, top, _, bottom = font.getbbox("H")
    start = (width - (left + right) / 2, size - (top + bottom) / 2)
    # Drawn twice as large with a thin outline, so that strokes get 3 px instead of 2.
    ImageDraw.Draw(image).text(start, character, fill=255, font=font, stroke_width=1, stroke_fill=255)
    image = image.resize((width, size), Image.Resampling.BOX)
    mask = np.asarray(image, dtype=np.float32) / np.float32(255)
    mask.flags.writeable = False
    return mask


@lru_cache(maxsize=2048)
def glyph_advance(character: str, size: int) -> int:
    """Pixels from this character to the next: always more than one patch of 14."""
    left, _, right, _ = ImageFont.load_default(size).getbbox(character)
    return max(15, int(right - left) + 3)


@lru_cache(maxsize=16)
def _spread(side: int, knots: int) -> Array:
    """Smooth interpolation from `knots` values to `side` pixels: (side, knots) float32."""
    at = (np.arange(side, dtype=np.float32) + 0.5) / side * (knots - 1)
    low = np.minimum(at.astype(np.int64), knots - 2)
    part = at - low
    part = part * part * (3 - 2 * part)
    matrix = np.zeros((side, knots), dtype=np.float32)
    rows = np.arange(side)
    matrix[rows, low] = 1 - part
    matrix[rows, low + 1] = part
    return matrix


def background(rng: np.random.Generator, side: int) -> Array:
    """A tinted gradient with slow noise, stripes and faint strokes: (side, side, 3) float32, 0-255."""
    knots = 5
    tone = rng.uniform(75, 150) + rng.uniform(-24, 24, 3)
    slope = rng.uniform(-28, 28, (2, 3))
    line = np.linspace(-0.5, 0.5, knots)
    coarse = tone + slope[0] * line[:, None, None] + slope[1] * line[None, :, None]
    coarse = (coarse + rng.normal(0, 7, (knots, knots, 3))).astype(np.float32)
    spread = _spread(side, knots)
    canvas = np.einsum("ya,abc->ybc", spread, coarse)
    canvas = np.matmul(spread, canvas)  # (side, knots) @ (side rows, knots, 3)
    flat = _stripes(rng, side) + _strokes(rng, side)
    return np.asarray(canvas + flat[:, :, None], dtype=np.float32)


def plain(rng: np.random.Generator, side: int) -> Array:
    """One even tone, as a person would draw on: mostly white or light, sometimes dark. (side, side, 3), 0-255."""
    kind = rng.random()
    if kind < 0.4:
        tone = rng.uniform(246, 255) + np.zeros(3)
    elif kind < 0.65:
        tone = rng.uniform(185, 245) + rng.uniform(-10, 10, 3)
    elif kind < 0.85:
        tone = rng.uniform(60, 165) + rng.uniform(-20, 20, 3)
    else:
        tone = rng.uniform(0, 40) + np.zeros(3)
    return np.broadcast_to(np.float32(np.round(tone)), (side, side, 3)).copy()


def _stripes(rng: np.random.Generator, side: int) -> Array:
    """A faint plane wave: (side, side) float32 around 0."""
    angle, period, phase = rng.uniform(0, 2 * pi), rng.uniform(6, 40), rng.uniform(0, 2 * pi)
    line = np.arange(side, dtype=np.float32) * (2 * pi / period)
    across, down = line * cos(angle) + phase, line * sin(angle)
    wave = np.outer(np.cos(down), np.sin(across)) + np.outer(np.sin(down), np.cos(across))
    return np.asarray(rng.uniform(0, 7) * wave, dtype=np.float32)


def _strokes(rng: np.random.Generator, side: int) -> Array:
    """Low-contrast lines, arcs and blobs, so that not everything that differs is an object."""
    image = Image.new("L", (side, side), 128)
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(2, 5) * side / 84)
    places = rng.uniform(-0.05, 1.0, (count, 2)) * side
    extents = rng.uniform(5, 34, (count, 2))
    kinds, greys = rng.integers(0, 4, count), 128 + rng.integers(-15, 16, count)
    for (x, y), (w, h), kind, grey in zip(places, extents, kinds, greys.tolist(), strict=True):
        box = (x, y, x + w, y + h)
        if kind == 0:
            draw.line(box, fill=grey, width=2)
        elif kind == 1:
            draw.ellipse(box, outline=grey, width=2)
        elif kind == 2:
            draw.ellipse(box, fill=grey)
        else:
            draw.rectangle(box, outline=grey, width=2)
    return np.asarray(image, dtype=np.float32) - 128
