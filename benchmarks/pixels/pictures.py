"""Draw the pictures for PixelPrune: a screenshot, a page of text, scans of it, and an imitation of a photograph."""

from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

__all__ = ["PICTURES"]

WORDS = [
    "A",
    "page",
    "that",
    "was",
    "born",
    "digital",
    "has",
    "large",
    "areas",
    "of",
    "one",
    "colour",
    "and",
    "a",
    "screen",
    "has",
    "more",
    "of",
    "them",
    "where",
    "nothing",
    "is",
    "shown",
    "while",
    "text",
    "leaves",
    "white",
    "between",
    "its",
    "lines",
    "and",
    "around",
    "its",
    "columns",
    "so",
    "that",
    "most",
    "of",
    "what",
    "a",
    "tower",
    "reads",
    "says",
    "nothing",
]
Size = tuple[int, int]


def lines(rng: np.random.Generator, count: int, words: int) -> list[str]:
    """Random lines of text."""
    return [" ".join(rng.choice(WORDS, rng.integers(words // 2, words + 1))) for _ in range(count)]


def screenshot(size: Size) -> Image.Image:
    """A mail program: a bar, a list of folders, a list of mails and an open mail."""
    wide, tall = size
    image, rng = Image.new("RGB", size, (250, 250, 252)), np.random.default_rng(0)
    draw, small, large = ImageDraw.Draw(image), ImageFont.load_default(13), ImageFont.load_default(20)
    draw.rectangle((0, 0, wide, 44), (38, 50, 76))
    draw.text((18, 10), "Letters", (255, 255, 255), large)
    draw.rounded_rectangle((wide // 3, 9, wide // 3 + 300, 35), 6, (64, 78, 108))
    draw.rectangle((0, 44, wide // 6, tall), (236, 239, 245))
    for row, name in enumerate(("Inbox", "Drafts", "Sent", "Archive", "Bin")):
        draw.text((22, 66 + 34 * row), name, (60, 66, 80), small)
    draw.rectangle((8, 60, wide // 6 - 8, 86), outline=(90, 120, 220))
    split = wide // 2
    for row, text in enumerate(lines(rng, (tall - 60) // 64, 7)):
        top = 56 + 64 * row
        draw.ellipse((wide // 6 + 14, top + 8, wide // 6 + 42, top + 36), tuple(rng.integers(80, 220, 3).tolist()))
        draw.text((wide // 6 + 54, top + 6), text[:26].title(), (20, 20, 30), small)
        draw.text((wide // 6 + 54, top + 26), text[:42], (110, 110, 120), small)
        draw.line((wide // 6, top + 56, split, top + 56), (226, 228, 234))
    draw.line((split, 44, split, tall), (214, 217, 224))
    draw.text((split + 28, 66), "Where the time goes", (20, 20, 30), large)
    for row, text in enumerate(lines(rng, 14, 9)):
        draw.text((split + 28, 112 + 22 * row), text[:60], (40, 40, 48), small)
    draw.rounded_rectangle((split + 28, tall - 70, split + 138, tall - 34), 8, (52, 104, 220))
    draw.text((split + 60, tall - 60), "Reply", (255, 255, 255), small)
    return image


def page(size: Size) -> Image.Image:
    """A page of text in black on white: a heading, and paragraphs."""
    wide, tall = size
    image, rng = Image.new("RGB", size, "white"), np.random.default_rng(1)
    draw, body = ImageDraw.Draw(image), ImageFont.load_default(16)
    margin, top = wide // 10, tall // 12
    draw.text((margin, top), "On what is not worth reading", "black", ImageFont.load_default(28))
    top += 60
    while top < tall - tall // 12:
        for text in lines(rng, int(rng.integers(3, 7)), 16):
            draw.text((margin, top), text[: (wide - 2 * margin) // 8], "black", body)
            top += 24
        top += 22
    return image


def bitmap(size: Size) -> Image.Image:
    """The page as a fax: pure black and white, slightly tilted."""
    tilted = page(size).convert("L").rotate(0.4, Image.Resampling.BICUBIC, fillcolor=255)
    return tilted.point(lambda level: 255 * (level > 128)).convert("RGB")


def scan(size: Size) -> Image.Image:
    """The page as a scan: tilted, on grey, with noise of standard deviation 2, compressed as JPEG."""
    grey = np.asarray(page(size).convert("L").rotate(0.4, Image.Resampling.BICUBIC, fillcolor=255), np.float32)
    noisy = 20 + 0.88 * grey + np.random.default_rng(2).normal(0, 2, grey.shape)
    kept = BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert("RGB").save(kept, "JPEG", quality=85)
    return Image.open(kept).convert("RGB")


def photograph(size: Size) -> Image.Image:
    """Smooth light and shade at several scales, with sensor noise."""
    rng, light = np.random.default_rng(3), np.zeros((size[1], size[0], 3), np.float32)
    for octave in range(2, 9):
        coarse = rng.integers(0, 256, (2**octave * 3 // 4, 2**octave, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        light += (np.asarray(smooth, np.float32) - 128) / octave**1.5
    noisy = 128 + light + rng.normal(0, 1.5, light.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


PICTURES: dict[str, Callable[[Size], Image.Image]] = {
    "screenshot": screenshot,
    "page of text": page,
    "page, black and white scan": bitmap,
    "page, grey scan": scan,
    "photograph": photograph,
}
