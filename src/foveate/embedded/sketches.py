"""Pictures as a person draws them with a few lines of code: equal things, any size, several fonts, plates, outlines.

A sketch is a `Scene` too, and a pure function of (split, index, side). It is drawn on a canvas of its own size, often
wide or tall, then padded to a square and resized, as a processor that pads would do.
"""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foveate.embedded.drawing import SHAPES
from foveate.embedded.grounds import Rgb, ground, rgb
from foveate.embedded.scenes import CHARACTERS, PATCH, Scene, Text, Thing, rng_for
from foveate.embedded.strokes import FONTS, Look, advances, draw_characters, draw_shape

__all__ = ["MEANT", "PAD", "Canvas", "free_box", "sketch", "stands_out", "tint", "write"]

PURPOSE = 4  # of the generator, see `rng_for`

PAD = (127, 127, 127)
"""What a processor that pads puts beside a wide or a tall picture."""

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
"""What people take when they mean a colour."""

LINES = 8
"""Lines of text in a crowded sketch, at most."""
MOST, LARGEST = 9, 220
"""Things in a sketch, and pixels of one, at most."""
SEEN = 100.0
"""How far a colour is from what it stands on, at least: Euclidean, of 441."""
FILLED = 0.38
"""Share of the picture that things may take together."""
BESIDE = 0.45
"""Share of things that are put beside an earlier one, in three sketches of ten."""

RATIOS = (1.25, 4 / 3, 1.5, 16 / 9, 2.0)

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class Canvas:
    """The picture before it is resized. All places are in pixels of the finished square.

    Attributes:
        side: Of the finished square.
        fine: Pixels of the canvas for each of these.
        inner: What is not padding.
    """

    side: int
    fine: float
    inner: Box

    @classmethod
    def drawn(cls, rng: np.random.Generator, side: int) -> "Canvas":
        """A canvas by lot: two in five wide or tall."""
        fine = 1.0 if rng.random() < 0.4 else float(np.exp(rng.uniform(np.log(0.6), np.log(2.2))))
        short = side / float(rng.choice(RATIOS)) if rng.random() < 0.4 else side
        near, far = (side - short) / 2, (side + short) / 2
        return cls(side, fine, (0, near, side, far) if rng.random() < 0.6 else (near, 0, far, side))

    @property
    def width(self) -> float:
        """Of what is not padding."""
        return self.inner[2] - self.inner[0]

    @property
    def height(self) -> float:
        """Of what is not padding."""
        return self.inner[3] - self.inner[1]

    def pixels(self, box: Box) -> tuple[int, int, int, int]:
        """A box in the canvas's own pixels."""
        left, top, right, bottom = (round(value * self.fine) for value in box)
        return left, top, right, bottom


def sketch(split: str, index: int, side: int = 336, crowded: bool = False) -> Scene:
    """Draw sketch number `index` of a split: a quarter show text alone, four in ten things alone.

    Args:
        split: A name in `foveate.embedded.scenes.SPLITS`.
        index: From 0 on.
        side: Pixels of the finished square, a multiple of 14.
        crowded: Write several lines, in a font each (for the tower), where there is room.
    """
    if side % PATCH:
        raise ValueError(f"side is {side}; it must be a multiple of {PATCH}.")
    rng = rng_for(split, index, PURPOSE)
    canvas = Canvas.drawn(rng, side)
    image = ground(rng, round(side * canvas.fine))
    owner = Image.new("L", image.size)
    kind = rng.random()
    taken: list[Box] = []
    texts: tuple[Text, ...] = ()
    for _ in range(LINES if crowded else int(kind < 0.6)):
        texts += write(rng, canvas, image, owner, taken, sum(len(text.characters) for text in texts))
    things = _place(rng, canvas, image, owner, taken) if kind > 0.25 or not texts else ()
    first = len(things) + 1
    characters = sum(len(text.characters) for text in texts)
    table = [*range(256 - characters), *range(first + characters - 1, first - 1, -1)]
    owned = owner.point(table).resize((side, side), Image.Resampling.NEAREST)
    return Scene(_finished(rng, canvas, image), things, texts, np.array(owned), sketched=True)


def _finished(rng: np.random.Generator, canvas: Canvas, image: Image.Image) -> NDArray[np.uint8]:
    """Padded and resized; one in five went through a JPEG file first."""
    if rng.random() < 0.2:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(55, 96)))
        image = Image.open(file)
    padded = Image.new("RGB", image.size, PAD)
    inside = canvas.pixels(canvas.inner)
    padded.paste(image.crop(inside), inside)
    return np.array(padded.resize((canvas.side, canvas.side), Image.Resampling.BICUBIC))


def write(
    rng: np.random.Generator,
    canvas: Canvas,
    image: Image.Image,
    owner: Image.Image,
    taken: list[Box],
    written: int = 0,
) -> tuple[Text, ...]:
    """One line of text, in three of ten on a plate; nothing where there is no room. `written` characters are there."""
    name = FONTS[int(rng.integers(len(FONTS)))]
    word = "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), int(rng.integers(1, 6))))
    most = min(100.0, canvas.height * 0.6)
    size = float(np.exp(rng.uniform(np.log(17), np.log(most))))
    while (width := sum(advances(word, name, round(size * canvas.fine))) / canvas.fine) > canvas.width - 16:
        size *= 0.85
    plate = rng.random() < 0.3
    margin = float(rng.uniform(0.1, 0.4)) * size if plate else 2.0
    box = free_box(rng, canvas, width + 2 * margin, size + 2 * margin, taken, 30)
    if box is None:
        return ()
    ink, bold = _ink(rng, image, canvas.pixels(box), plate), bool(rng.random() < 0.2)
    start = (box[0] + margin) * canvas.fine, (box[1] + box[3]) / 2 * canvas.fine
    cells = draw_characters(image, owner, word, start, name, round(size * canvas.fine), ink, bold, 255 - written)
    centres = tuple((left + right) / 2 / canvas.fine for left, right in cells)
    return (Text(word, centres, (box[1] + box[3]) / 2, round(size)),)


def _ink(rng: np.random.Generator, image: Image.Image, box: tuple[int, int, int, int], plate: bool) -> Rgb:
    """A colour that stands out from what it is written on; draws the plate, if there is one."""
    under = _mean(image, box)
    if plate:
        under = np.array(_coloured(rng, under, SEEN) if rng.random() < 0.5 else _black_or_white(rng, under, 90))
        corner = int(rng.integers(0, 2)) * (box[3] - box[1]) // 6
        ImageDraw.Draw(image).rounded_rectangle(box, corner, fill=rgb(under))
    return _coloured(rng, under, 150) if rng.random() < 0.3 else _black_or_white(rng, under, 150)


def _black_or_white(rng: np.random.Generator, under: NDArray[np.float64], apart: float) -> Rgb:
    """Nearly black or nearly white, whichever stands out; by lot where both do."""
    tones = [rgb(np.full(3, rng.uniform(0, 30))), rgb(np.full(3, rng.uniform(230, 255)))]
    seen = [tone for tone in tones if np.linalg.norm(np.array(tone) - under) > apart * 1.2]
    return seen[int(rng.integers(len(seen)))] if seen else max(tones, key=lambda t: abs(t[0] - under.mean()))


def _coloured(rng: np.random.Generator, under: NDArray[np.float64], apart: float) -> Rgb:
    """One of the colours that stand out."""
    everything = [colour for meant in MEANT.values() for colour in meant]
    seen = [colour for colour in everything if np.linalg.norm(np.array(colour) - under) > apart]
    return seen[int(rng.integers(len(seen)))] if seen else _black_or_white(rng, under, apart)


def _mean(image: Image.Image, box: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Mean colour inside a box."""
    pixel = image.crop(box).resize((1, 1), Image.Resampling.BOX)
    return np.array(pixel, dtype=np.float64).reshape(3)


def _place(
    rng: np.random.Generator, canvas: Canvas, image: Image.Image, owner: Image.Image, taken: list[Box]
) -> tuple[Thing, ...]:
    """Draw things of few kinds or of many, anywhere or in rows."""
    kinds = _kinds(rng)
    room = FILLED * canvas.width * canvas.height / len(kinds)
    most = max(18.0, min(LARGEST, canvas.height * 0.7, room**0.5))
    size = float(rng.uniform(16, most) if rng.random() < 0.3 else np.exp(rng.uniform(np.log(16), np.log(most))))
    uneven, paired = rng.random() < 0.5, rng.random() < 0.3
    cells = _rows(rng, canvas, size) if rng.random() < 0.25 else []
    look, tints = Look.drawn(rng), {name: tint(rng, name) for _, name in kinds}
    draw, own = ImageDraw.Draw(image), ImageDraw.Draw(owner)
    things: list[Thing] = []
    for shape, colour in kinds:
        across = size * float(rng.uniform(0.7, 1.3)) if uneven and not cells else size
        across = float(np.clip(across, 15, LARGEST))
        box = next((cell for cell in cells if _is_free(cell, taken)), None)
        if box is None and paired and things and rng.random() < BESIDE:
            box = _beside(rng, canvas, across, things[int(rng.integers(len(things)))], taken)
        if box is None:
            box = free_box(rng, canvas, across, across, taken, 25)
        else:
            taken.append(box)
        if box is None or not stands_out(image, canvas.pixels(box), tints[colour]):
            continue
        thing = Thing(shape, colour, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, round(across))
        centre = thing.x * canvas.fine, thing.y * canvas.fine
        draw_shape(draw, shape, centre, across * canvas.fine, tints[colour], look, look.edge)
        things.append(thing)
        draw_shape(own, shape, centre, across * canvas.fine, len(things), look, len(things))
    return tuple(things)


def stands_out(image: Image.Image, box: tuple[int, int, int, int], colour: Rgb) -> bool:
    """Whether a colour can be told from what is in a box."""
    return bool(np.linalg.norm(_mean(image, box) - colour) >= SEEN)


def _kinds(rng: np.random.Generator) -> list[tuple[str, str]]:
    """Shape and colour of each thing: all equal, one shape, one colour, a few groups, or any."""
    shapes = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colours = [list(MEANT)[i] for i in rng.permutation(len(MEANT))]
    manner, count = rng.random(), int(rng.integers(1, MOST + 1))
    if manner < 0.4:
        shapes, colours = shapes[:1], colours[:1]
        count = max(count, int(rng.integers(1, MOST + 1)))  # many are hard to count
    elif manner < 0.5:
        shapes = shapes[:1]
    elif manner < 0.6:
        colours = colours[:1]
    elif manner < 0.8:
        shapes, colours = shapes[:2], colours[: int(rng.integers(1, 4))]
    return [(shapes[int(rng.integers(len(shapes)))], colours[int(rng.integers(len(colours)))]) for _ in range(count)]


def tint(rng: np.random.Generator, name: str) -> Rgb:
    """What a person takes for a colour, as it is or a little off."""
    meant = MEANT[name]
    exact = np.array(meant[int(rng.integers(len(meant)))] if rng.random() < 0.6 else meant[0])
    return rgb(exact if rng.random() < 0.6 else exact + rng.uniform(-18, 18, 3))


def _rows(rng: np.random.Generator, canvas: Canvas, size: float) -> list[Box]:
    """Cells at even distances, row by row, somewhere on the canvas."""
    step = size * float(rng.uniform(1.15, 1.8)) + 3
    across, down = (max(1, int((whole - 4) // step)) for whole in (canvas.width, canvas.height))
    across = min(across, int(rng.integers(1, 10)))
    left = canvas.inner[0] + 2 + float(rng.random()) * max(0, canvas.width - 4 - across * step)
    top = canvas.inner[1] + 2 + float(rng.random()) * max(0, canvas.height - 4 - min(down, -(-MOST // across)) * step)
    starts = [(left + i * step, top + j * step) for j in range(down) for i in range(across)]
    inside = canvas.inner[3] - size - 1
    return [(x, y, x + size, y + size) for x, y in starts if y <= inside and x + size < canvas.inner[2]]


def _beside(rng: np.random.Generator, canvas: Canvas, across: float, other: Thing, taken: list[Box]) -> Box | None:
    """A place close to another thing, on one of its four sides, or None."""
    apart = (other.size + across) / 2 + float(rng.uniform(3, 14))
    slip = float(rng.uniform(-6, 6))
    dx, dy = ((-apart, slip), (apart, slip), (slip, -apart), (slip, apart))[int(rng.integers(4))]
    left, top = other.x + dx - across / 2, other.y + dy - across / 2
    box = left, top, left + across, top + across
    inside = left > canvas.inner[0] and top > canvas.inner[1] and box[2] < canvas.inner[2] and box[3] < canvas.inner[3]
    return box if inside and _is_free(box, taken) else None


def free_box(
    rng: np.random.Generator, canvas: Canvas, width: float, height: float, taken: list[Box], tries: int
) -> Box | None:
    """A place apart from everything taken, or None; records the place it returns."""
    left, top, right, bottom = canvas.inner
    if right - left - width < 3 or bottom - top - height < 3:
        return None
    low, high = (left + 1, top + 1), (right - width - 1, bottom - height - 1)
    for x, y in rng.uniform(low, high, (tries, 2)).tolist():
        box = x, y, x + width, y + height
        if _is_free(box, taken):
            taken.append(box)
            return box
    return None


def _is_free(box: Box, taken: list[Box]) -> bool:
    """Whether a box is 3 px or more from everything taken."""
    return all(box[0] >= r + 3 or l >= box[2] + 3 or box[1] >= b + 3 or t >= box[3] + 3 for l, t, r, b in taken)  # noqa: E741
