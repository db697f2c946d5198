"""What sketches are drawn on: white, an even tone, a gradient, or something like a photograph out of focus."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["Rgb", "ground", "rgb"]

Rgb = tuple[int, int, int]

COARSE = 96
"""Pixels a side at which a photograph's slow waves are drawn."""


def ground(rng: np.random.Generator, side: int) -> Image.Image:
    """A square ground of `side` pixels, RGB."""
    kind = rng.random()
    if kind < 0.3:
        return Image.new("RGB", (side, side), (255, 255, 255))
    if kind < 0.6:
        return Image.new("RGB", (side, side), _tone(rng))
    if kind < 0.72:
        return _gradient(rng, side)
    return _photograph(rng, side)


def rgb(values: NDArray[np.floating]) -> Rgb:
    """Three numbers as a colour, within 0 to 255."""
    red, green, blue = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return red, green, blue


def _tone(rng: np.random.Generator) -> Rgb:
    """Light, black, any colour, grey or tinted."""
    kind = rng.random()
    if kind < 0.35:
        return rgb(rng.uniform(205, 255, 3))
    if kind < 0.5:
        return rgb(rng.uniform(0, 30) + np.zeros(3))
    if kind < 0.65:
        return rgb(rng.uniform(0, 255, 3))
    if kind < 0.82:
        return rgb(rng.uniform(30, 230) + rng.uniform(-6, 6, 3))
    return rgb(rng.uniform(40, 190) + rng.uniform(-45, 45, 3))


def _gradient(rng: np.random.Generator, side: int) -> Image.Image:
    ends = np.array([[_tone(rng), _tone(rng)]], dtype=np.uint8)
    turned = ends if rng.random() < 0.5 else ends.transpose(1, 0, 2)
    return Image.fromarray(np.ascontiguousarray(turned)).resize((side, side), Image.Resampling.BILINEAR)


def _photograph(rng: np.random.Generator, side: int) -> Image.Image:
    """Noise at every scale around a tone, a few soft things, and mostly a fine grain."""
    tone = np.array(_tone(rng), dtype=np.float64)
    strength, fall = rng.uniform(8, 30), rng.uniform(0.3, 1.0)
    waves = np.broadcast_to(tone, (COARSE, COARSE, 3)).copy()
    for knots in (3, 6, 12, 24, 48):
        field = 128 + 30 * (rng.normal(0, 1, (knots, knots, 1)) + rng.normal(0, 0.35, (knots, knots, 3)))
        small = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
        wave = np.asarray(small.resize((COARSE, COARSE), Image.Resampling.BICUBIC), dtype=np.float64) - 128
        waves += wave / 30 * strength * (6 / knots) ** fall
    image = Image.fromarray(np.clip(waves, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 6))):
        x, y = rng.uniform(-20, COARSE, 2).tolist()
        width, height = rng.uniform(8, 60, 2).tolist()
        shade = rgb(tone + rng.normal(0, 25, 3))
        paint = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        paint((x, y, x + width, y + height), fill=shade)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 4)))).resize((side, side))
    if rng.random() < 0.3:
        return image
    half = -(-side // 2)
    grain = np.kron(rng.integers(-12, 13, (half, half)), np.ones((2, 2)))[:side, :side, None] * rng.random()
    return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
