"""Synthetic pictures: coloured shapes and short texts, and where each of them is.

A picture is a `Scene`, and a pure function of (split, index, side) and one switch. Held-out pictures can never be drawn
in training, because the split is part of the seed. There are two kinds:

- `scene` paints smooth shapes, no two alike, on clutter or on an even ground.
- `sketch` draws as a person does with a few lines of code: equal things, any size, several fonts, plates, outlines. Its
  canvas has a size of its own, is often wide or tall, and is padded to a square and resized as a processor does.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from foveate.embedded.drawing import (
    COLOURS,
    FONTS,
    MEANT,
    PURE,
    SHAPES,
    Pen,
    Pixels,
    Rgb,
    background,
    draw_characters,
    draw_shape,
    font,
    glyph,
    glyph_advance,
    ground,
    ink_on,
    log_uniform,
    pick,
    plain,
    shape_mask,
    stands_out,
    tint,
)

PATCH = 14
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SPLITS = {"train": 1, "held-out": 2, "demo": 3}

PAD = (127, 127, 127)
"""What a processor that pads puts beside a wide or a tall sketch."""

# Of scenes.
MOST = {84: 4}  # objects on small canvases; 8 on all others
LIGHT, DARK = 165.0, 55.0  # tones of a ground on which white, or dark ink, would not be seen

# Of sketches.
MOST_SKETCHED = 9  # things, at most
LARGEST = 220  # pixels of one thing, at most
RATIOS = (1.25, 4 / 3, 1.5, 16 / 9, 2.0)  # of the long side of a wide or tall sketch to its short one


# What a picture shows.


@dataclass(frozen=True, slots=True)
class Thing:
    """One coloured shape. `x`, `y` are its centre, `size` its width and height, all in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    size: int

    @property
    def name(self) -> str:
        """What questions and answers call it, as in "red star"."""
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        """x and y."""
        return self.x, self.y


@dataclass(frozen=True, slots=True)
class Lettering:
    """One line of capitals and digits. `xs` are the characters' centres, `y` the line's, in pixels."""

    characters: str
    xs: tuple[float, ...]
    y: float
    size: int

    @property
    def name(self) -> str:
        """What answers call it: its characters."""
        return self.characters

    @property
    def x(self) -> float:
        """Centre of the whole line."""
        return (self.xs[0] + self.xs[-1]) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and everything that is in it.

    Attributes:
        image: (side, side, 3) uint8, RGB.
        things: The shapes, in the order in which they were drawn.
        texts: At most one, except in dense scenes and crowded sketches.
        owner: (side, side) uint8: 0 background, then things and then characters, counted from 1.
        sketched: Whether it was drawn by `sketch`; things may then be equal.
    """

    image: NDArray[np.uint8]
    things: tuple[Thing, ...]
    texts: tuple[Lettering, ...]
    owner: NDArray[np.uint8]
    sketched: bool = False

    @property
    def side(self) -> int:
        """Width and height in pixels."""
        return int(self.image.shape[0])


def rng_for(split: str, index: int, purpose: int = 0) -> Generator:
    """The generator of one picture.

    `purpose` separates drawing (0), questions (1), pairs (2), style (3), sketches (4), whether a picture of training is
    one (5), and films (6).
    """
    return np.random.default_rng([SPLITS[split], index, purpose])


# Where things and texts find room.


class Box(NamedTuple):
    """What a thing or a line of text fills, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """From left to right."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """From top to bottom."""
        return self.bottom - self.top

    @property
    def centre(self) -> tuple[float, float]:
        """x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


Corners = Sequence[tuple[float, float]]
"""Left upper corners of boxes that a thing or a text might fill."""


@dataclass(slots=True, kw_only=True)
class Surface:
    """What is filled already, and how many pixels apart boxes are, across or down."""

    gap: ClassVar[int]
    taken: list[Box] = field(default_factory=list)

    def claim(self, corners: Corners, width: float, height: float) -> Box | None:
        """The first free box of this size at one of the corners, or None; it is taken from then on."""
        for left, top in corners:
            right, bottom = left + width, top + height
            near = [
                other
                for other in self.taken
                if left < other.right + self.gap and other.left < right + self.gap
                if top < other.bottom + self.gap and other.top < bottom + self.gap
            ]
            if not near:
                self.taken.append(Box(left, top, right, bottom))
                return self.taken[-1]
        return None


def corner_beside(rng: Generator, anchor: Thing, size: float, apart: float, slip: float) -> tuple[float, float]:
    """The left upper corner of a box on the left, right, upper or lower side of a thing.

    Its centre is `apart` pixels from the thing's, and `slip` out of line.
    """
    dx, dy = pick(rng, ((-apart, slip), (apart, slip), (slip, -apart), (slip, apart)))
    return anchor.x + dx - size / 2, anchor.y + dy - size / 2


def shuffle(rng: Generator, names: Sequence[str]) -> list[str]:
    """The names in any order."""
    return [names[i] for i in rng.permutation(len(names))]


def random_word(rng: Generator, shortest: int) -> str:
    """Up to five characters."""
    length = rng.integers(shortest, 6)
    return "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), length))


# Scenes.


@dataclass(slots=True)
class Board(Surface):
    """What a scene is painted on, by default clutter, and what is filled already; in pixels.

    Attributes:
        side: Width and height.
        dense: Whether to fill it.
        largest, largest_text: Of one thing, and of a text's height.
        ground: (side, side, 3) float32, 0-255; None for clutter, which is painted when all has its place.
        tone: Mean of an even ground; clutter is neither light nor dark.
        grain: Of the pixel noise, 0 for none; None for that of clutter.
    """

    gap = 2
    side: int
    dense: bool
    largest: int = 30
    largest_text: int = 26
    ground: NDArray[np.float32] | None = None
    tone: float = (LIGHT + DARK) / 2
    grain: int | None = None

    @classmethod
    def draw_lot(cls, rng: Generator, side: int, dense: bool) -> "Board":
        """An empty board by lot; only large ones have room for large things."""
        board = cls(side, dense)
        if rng.random() >= 0.3:  # others are on an even ground, with larger things, as a person would draw them
            return board
        board.grain = int(rng.integers(0, 6)) if rng.random() < 0.4 else 0
        board.ground = plain(rng, side)
        board.tone = float(board.ground[0, 0].mean())
        if side >= 336:
            board.largest = 46
            board.largest_text = 34
        return board

    def claim_anywhere(self, rng: Generator, width: int, height: int, tries: int) -> Box | None:
        """A free box by lot, or None; it is taken from then on."""
        ends = (self.side - width, self.side - height)
        corners = rng.integers(1, ends, (tries, 2))
        return self.claim(corners.tolist(), width, height)


def scene(split: str, index: int, side: int = 336, dense: bool = False) -> Scene:
    """Draw scene number `index` of a split.

    Args:
        split: A name in `SPLITS`.
        index: From 0 on.
        side: Pixels, a multiple of 14. Objects keep their size in pixels on every side.
        dense: Fill the canvas (for the tower's first stage) instead of placing 1 to 8 objects.

    Raises:
        ValueError: If the side is no such multiple.
    """
    if side % PATCH:
        raise ValueError(f"side is {side}; it must be a multiple of {PATCH}.")
    rng = rng_for(split, index)
    board = Board.draw_lot(rng_for(split, index, purpose=3), side, dense)
    texts = _place_texts(rng, board)
    things = _place_things(rng, rng_for(split, index, purpose=2), board)
    image, owner = _paint(rng, board, _marks(rng, board, things, texts))
    return Scene(image, tuple(things), tuple(texts), owner)


def _place_texts(rng: Generator, board: Board) -> list[Lettering]:
    """Words of two to five characters, where there is room.

    One in three scenes of four; up to two for every 84 pixels of a dense one's side.
    """
    texts = []
    if board.dense:
        count = int(rng.integers(0, 2 * (board.side // 84) + 1))
    else:
        count = int(rng.random() < 0.75)
    for _ in range(count):
        size = int(rng.integers(20, board.largest_text + 1))
        word = random_word(rng, 2)
        advances = [glyph_advance(character, size) for character in word]
        while sum(advances) > board.side - 4:
            del advances[-1]
        box = board.claim_anywhere(rng, sum(advances), size, 20)
        if box is not None:
            xs = box.left + np.cumsum(advances) - np.divide(advances, 2)
            texts.append(Lettering(word[: len(advances)], tuple(xs.tolist()), box.centre[1], size))
    return texts


def _place_things(rng: Generator, pairing: Generator, board: Board) -> list[Thing]:
    """Find room for things, in half of the scenes mostly beside one another; `pairing` decides which."""
    tries = 40
    share_beside = 0.0
    if not board.dense:
        tries = 12
        if pairing.random() < 0.5:
            share_beside = 0.7  # if there is room
    things: list[Thing] = []
    for shape, colour in _scene_kinds(rng, board):
        size = int(rng.integers(16, board.largest + 1))
        box = None
        if things and pairing.random() < share_beside:
            anchor = pick(pairing, things)
            box = board.claim(_beside(pairing, board.side, size, anchor), size, size)
        if box is None:
            box = board.claim_anywhere(rng, size, size, tries)
        if box is not None:
            things.append(Thing(shape, colour, *box.centre, size))
    return things


def _scene_kinds(rng: Generator, board: Board) -> list[tuple[str, str]]:
    """Shape and colour of each thing, no two alike: of few shapes and colours, so that counts above one happen."""
    most = min(5 * (board.side // 84) ** 2, 60)
    colours = list(COLOURS)
    shapes = list(SHAPES)
    if not board.dense:
        most = int(rng.integers(1, MOST.get(board.side, 8) + 1))
        colours = shuffle(rng, colours)[: rng.integers(2, 9)]
        shapes = shuffle(rng, shapes)[: rng.integers(2, 9)]
    if board.tone > LIGHT:
        colours = [colour for colour in colours if colour != "white"] or ["red"]
    kinds = list(product(shapes, colours))
    return [kinds[i] for i in rng.permutation(len(kinds))[:most]]


def _beside(rng: Generator, side: int, size: int, anchor: Thing) -> Corners:
    """The left upper corner of a box close to a thing, on one of its four sides; none outside the picture."""
    apart = (anchor.size + size) // 2 + int(rng.integers(2, 11))
    slip = int(rng.integers(-6, 7))
    left, top = map(int, corner_beside(rng, anchor, size, apart, slip))
    if min(left, top) >= 1 and max(left, top) < side - size:
        return [(left, top)]
    return []


Mark = tuple[NDArray[np.float32], float, float, NDArray[np.float64]]
"""One shape or character to paint: its mask (height, width), x and y of its centre, and its colour (3,)."""


def _marks(rng: Generator, board: Board, things: list[Thing], texts: list[Lettering]) -> Iterator[Mark]:
    """The things, then the characters."""
    for thing in things:
        named = np.array(COLOURS[thing.colour])
        colour = named + rng.uniform(-16, 16, 3)
        if board.ground is not None:
            share = rng.random()
            colour += share * (pick(rng, PURE[thing.colour]) - named)
        yield shape_mask(thing.shape, thing.size), thing.x, thing.y, colour
    for text in texts:
        dark = rng.random() < 0.5 if DARK < board.tone < LIGHT else board.tone >= LIGHT
        # Nearly black or nearly white, so that it is seen on the ground.
        ink = np.full(3, rng.uniform(0, 25) if dark else rng.uniform(225, 255))
        for character, x in zip(text.characters, text.xs, strict=True):
            yield glyph(character, text.size), x, text.y, ink


def _paint(rng: Generator, board: Board, marks: Iterator[Mark]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The picture and its owner map; the marks are drawn one by one, after the ground."""
    canvas = board.ground
    if canvas is None:
        canvas = background(rng, board.side)
    owner = np.zeros((board.side, board.side), dtype=np.uint8)
    for number, (mask, x, y, colour) in enumerate(marks, start=1):
        height, width = mask.shape
        top = round(y - height / 2)
        left = round(x - width / 2)
        place = np.s_[top : top + height, left : left + width]
        region = canvas[place]  # a view: what is added to it is added to the canvas
        region += mask[:, :, None] * (colour.astype(np.float32) - region)
        owner[place][mask > 0.5] = number
    grain = board.grain
    if grain is None:
        grain = int(rng.integers(3, 12))
    canvas += rng.integers(-grain, grain + 1, canvas.shape, dtype=np.int8)
    return np.clip(canvas, 0, 255).astype(np.uint8), owner


# Sketches.


@dataclass(slots=True)
class Canvas(Surface):
    """A sketch before it is resized. All places are in pixels of the finished square.

    Attributes:
        side: Of the finished square.
        fine: Pixels of the canvas for each of these.
        inner: What is not padding.
        image: The picture so far, RGB.
        owner: What each pixel of `image` shows: 0 for the ground, or a mark. Things count up
            from 1, and characters down from 255.
        characters: How many are written.
    """

    gap = 3
    side: int
    fine: float
    inner: Box
    image: Image.Image
    owner: Image.Image = field(init=False)
    characters: int = 0

    def __post_init__(self) -> None:
        self.owner = Image.new("L", self.image.size)

    @classmethod
    def draw_lot(cls, rng: Generator, side: int) -> "Canvas":
        """A canvas by lot, with nothing on it: two in five wide or tall."""
        fine = log_uniform(rng, 0.6, 2.2) if rng.random() >= 0.4 else 1.0
        short = side / float(rng.choice(RATIOS)) if rng.random() < 0.4 else float(side)
        near = (side - short) / 2
        far = (side + short) / 2
        inner = Box(0, near, side, far) if rng.random() < 0.6 else Box(near, 0, far, side)
        return cls(side, fine, inner, ground(rng, round(side * fine)))

    def pixels(self, box: Box) -> Pixels:
        """A box in the canvas's own pixels."""
        left, top, right, bottom = (round(value * self.fine) for value in box)
        return left, top, right, bottom

    def claim_anywhere(self, rng: Generator, width: float, height: float, tries: int) -> Box | None:
        """A free box by lot, or None; it is taken from then on."""
        if self.inner.width - width < 3 or self.inner.height - height < 3:
            return None
        low = (self.inner.left + 1, self.inner.top + 1)
        high = (self.inner.right - width - 1, self.inner.bottom - height - 1)
        corners = rng.uniform(low, high, (tries, 2))
        return self.claim(corners.tolist(), width, height)

    def draw(self, thing: Thing, size: float, pen: Pen, colour: Rgb, mark: int) -> None:
        """Draw a thing, `size` pixels of the finished square large, and mark what pixels show it."""
        centre = (thing.x * self.fine, thing.y * self.fine)
        size *= self.fine
        draw_shape(self.image, thing.shape, centre, size, pen, (colour, pen.edge))
        draw_shape(self.owner, thing.shape, centre, size, pen, (mark, mark))


def sketch(split: str, index: int, side: int = 336, crowded: bool = False) -> Scene:
    """Draw sketch number `index` of a split: a quarter show text alone, four in ten things alone.

    Args:
        split: A name in `SPLITS`.
        index: From 0 on.
        side: Pixels of the finished square, a multiple of 14.
        crowded: Write up to eight lines, in a font each (for the tower), where there is room.

    Raises:
        ValueError: If the side is no such multiple.
    """
    if side % PATCH:
        raise ValueError(f"side is {side}; it must be a multiple of {PATCH}.")
    rng = rng_for(split, index, purpose=4)
    canvas = Canvas.draw_lot(rng, side)
    kind = rng.random()
    lines = 8 if crowded else int(kind < 0.6)
    texts = [text for _ in range(lines) if (text := write(rng, canvas)) is not None]
    things: list[Thing] = _draw_things(rng, canvas) if kind > 0.25 or not texts else []
    numbers = list(range(256))  # in a picture, characters count on from the last thing
    for character in range(canvas.characters):
        numbers[255 - character] = len(things) + 1 + character
    owner = canvas.owner.point(numbers).resize((side, side), Image.Resampling.NEAREST)
    image = _finish(rng, canvas)
    return Scene(image, tuple(things), tuple(texts), np.array(owner), sketched=True)


def _finish(rng: Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """Padded and resized; one in five went through a JPEG file first."""
    image = canvas.image
    if rng.random() < 0.2:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(55, 96)))
        image = Image.open(file)
    padded = Image.new("RGB", image.size, PAD)
    inside = canvas.pixels(canvas.inner)
    padded.paste(image.crop(inside), inside)
    small = padded.resize((canvas.side, canvas.side), Image.Resampling.BICUBIC)
    return np.array(small)


def write(rng: Generator, canvas: Canvas) -> Lettering | None:
    """Write one line of text, in three of ten on a plate; nothing where there is no room."""
    fine = canvas.fine
    name = pick(rng, FONTS)
    word = random_word(rng, 1)
    largest = min(100.0, canvas.inner.height * 0.6)
    size = log_uniform(rng, 17, largest)
    while (width := sum(map(font(name, round(size * fine)).getlength, word)) / fine) > canvas.inner.width - 16:
        size *= 0.85
    plate = rng.random() < 0.3
    margin = rng.uniform(0.1, 0.4) * size if plate else 2.0
    box = canvas.claim_anywhere(rng, width + 2 * margin, size + 2 * margin, 30)
    if box is None:
        return None
    ink = ink_on(rng, canvas.image, canvas.pixels(box), plate)
    bold = rng.random() < 0.2
    _, middle = box.centre
    start = ((box.left + margin) * fine, middle * fine)
    face = font(name, round(size * fine))
    xs = []
    for character in draw_characters(canvas.image, word, start, face, ink, bold):
        canvas.owner.paste(255 - canvas.characters, character.corner, character.mask)
        canvas.characters += 1
        xs.append(character.middle / fine)
    return Lettering(word, tuple(xs), middle, round(size))


def _draw_things(rng: Generator, canvas: Canvas) -> list[Thing]:
    """Draw things of few kinds or of many, anywhere or in rows."""
    kinds = _sketch_kinds(rng)
    # 16 pixels to what the picture has room for: together the things take at most that share of it.
    room = 0.38 * canvas.inner.width * canvas.inner.height / len(kinds)
    most = max(18.0, min(LARGEST, canvas.inner.height * 0.7, room**0.5))
    size = rng.uniform(16, most) if rng.random() < 0.3 else log_uniform(rng, 16, most)
    uneven = rng.random() < 0.5
    paired = rng.random() < 0.3  # 0.45 of its things are then put beside an earlier one
    cells: Corners = _rows(rng, canvas.inner, size) if rng.random() < 0.25 else []
    pen = Pen.draw_lot(rng)
    tints = {colour: tint(rng, colour) for _, colour in kinds}
    things: list[Thing] = []
    for shape, colour in kinds:
        across = size
        if uneven and not cells:
            across *= rng.uniform(0.7, 1.3)
        across = min(max(across, 15), LARGEST)
        box = canvas.claim(cells, across, across)
        if box is None and paired and things and rng.random() < 0.45:
            anchor = pick(rng, things)
            box = canvas.claim(_beside_sketched(rng, canvas.inner, across, anchor), across, across)
        if box is None:
            box = canvas.claim_anywhere(rng, across, across, 25)
        if box is not None and stands_out(canvas.image, canvas.pixels(box), tints[colour]):
            thing = Thing(shape, colour, *box.centre, round(across))
            things.append(thing)
            canvas.draw(thing, across, pen, tints[colour], len(things))
    return things


def _sketch_kinds(rng: Generator) -> list[tuple[str, str]]:
    """Shape and colour of each thing: all equal, one shape, one colour, a few groups, or any."""
    shapes = shuffle(rng, SHAPES)
    colours = shuffle(rng, list(MEANT))
    manner = rng.random()
    count = rng.integers(1, MOST_SKETCHED + 1)
    if manner < 0.4:
        shapes = shapes[:1]
        colours = colours[:1]
        count = max(count, rng.integers(1, MOST_SKETCHED + 1))  # many are hard to count
    elif manner < 0.5:
        shapes = shapes[:1]
    elif manner < 0.6:
        colours = colours[:1]
    elif manner < 0.8:
        shapes = shapes[:2]
        colours = colours[: rng.integers(1, 4)]
    return [(pick(rng, shapes), pick(rng, colours)) for _ in range(count)]


def _rows(rng: Generator, inner: Box, size: float) -> Corners:
    """Left upper corners of cells at even distances, row by row, somewhere on the canvas."""
    step = size * rng.uniform(1.15, 1.8) + 3
    width = inner.width - 4
    height = inner.height - 4
    columns = max(1, int(width // step))
    rows = max(1, int(height // step))
    columns = min(columns, int(rng.integers(1, 10)))
    needed = min(rows, -(-MOST_SKETCHED // columns))
    left = inner.left + 2 + rng.random() * max(0, width - columns * step)
    top = inner.top + 2 + rng.random() * max(0, height - needed * step)
    xs = [left + column * step for column in range(columns)]
    ys = [top + row * step for row in range(rows)]
    lowest = inner.bottom - size - 1
    return [(x, y) for y in ys for x in xs if y <= lowest and x + size < inner.right]


def _beside_sketched(rng: Generator, inner: Box, across: float, anchor: Thing) -> Corners:
    """The left upper corner of a box close to a thing, on one of its four sides; none outside the canvas."""
    apart = (anchor.size + across) / 2 + rng.uniform(3, 14)
    slip = rng.uniform(-6, 6)
    left, top = corner_beside(rng, anchor, across, apart, slip)
    if left <= inner.left or top <= inner.top:
        return []
    if left + across >= inner.right or top + across >= inner.bottom:
        return []
    return [(left, top)]
