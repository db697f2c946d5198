"""Synthetic pictures of coloured shapes and short texts, with the position of each.

A picture is a `Scene`, a pure function of (split, index, side) and one switch. The split is part of the seed, so
training never draws held-out pictures. There are two kinds:

- `scene` draws smooth shapes, no two alike, on clutter or on a uniform background.
- `sketch` draws like a few lines of a user's code: equal things, any size, several fonts, plates, outlines. Its canvas
  has its own size, is often wide or tall, and is padded to a square and resized, as a processor does.
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

from foveate.embedded import drawing

PATCH = 14
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
SPLITS = {"train": 1, "held-out": 2, "demo": 3}

PAD = (127, 127, 127)
"""Colour of the padding beside a wide or tall sketch."""

# Limits of scenes.
MOST = {84: 4}  # maximum number of objects by the side of the canvas; 8 on other sides
LIGHT, DARK = 165.0, 55.0  # white is invisible on tones above LIGHT, dark ink on tones below DARK

# Limits of sketches.
MOST_SKETCHED = 9  # maximum number of things
LARGEST = 220  # maximum size of a thing, in pixels
RATIOS = (1.25, 4 / 3, 1.5, 16 / 9, 2.0)  # aspect ratios of wide or tall sketches


# Content of a picture.


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured shape. `x`, `y` are its centre, `size` its width and height, all in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    size: int

    @property
    def name(self) -> str:
        """The name in questions and answers, such as "red star"."""
        return f"{self.colour} {self.shape}"

    @property
    def centre(self) -> tuple[float, float]:
        """x and y."""
        return self.x, self.y


@dataclass(frozen=True, slots=True)
class Lettering:
    """A line of capitals and digits. `xs` are the x of the characters' centres, `y` that of the line, in pixels."""

    characters: str
    xs: tuple[float, ...]
    y: float
    size: int

    @property
    def name(self) -> str:
        """The name in answers: the characters."""
        return self.characters

    @property
    def x(self) -> float:
        """The x of the line's centre."""
        return (self.xs[0] + self.xs[-1]) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A picture and its content.

    Attributes:
        image: (side, side, 3) uint8, RGB.
        things: The shapes, in drawing order.
        texts: At most one text, except in dense scenes and crowded sketches.
        owner: (side, side) uint8, the object at each pixel: 0 is the background; things and then characters count from
            1.
        sketched: True if it was drawn by `sketch`; several things may then be equal.
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
    """Return the random generator of a picture.

    `purpose` separates the streams for drawing (0), questions (1), pairs (2), style (3), sketches (4), the choice of
    sketches in training (5), and films (6).
    """
    return np.random.default_rng([SPLITS[split], index, purpose])


# Placement of things and texts.


class Box(NamedTuple):
    """The box of a thing or of a line of text, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """The width in pixels."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """The height in pixels."""
        return self.bottom - self.top

    @property
    def centre(self) -> tuple[float, float]:
        """x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


Corners = Sequence[tuple[float, float]]
"""Candidates for the upper left corner of a box."""


@dataclass(slots=True, kw_only=True)
class Surface:
    """A surface with its taken boxes, which are at least `gap` pixels apart horizontally or vertically."""

    gap: ClassVar[int]
    taken: list[Box] = field(default_factory=list)

    def claim(self, corners: Corners, width: float, height: float) -> Box | None:
        """Take and return the first free box of this size at one of the corners; None if there is none."""
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
    """Draw the upper left corner of a box on the left, right, upper or lower side of a thing.

    The centre of the box is `apart` pixels from that of the thing, and `slip` pixels out of line.
    """
    dx, dy = drawing.pick(rng, ((-apart, slip), (apart, slip), (slip, -apart), (slip, apart)))
    return anchor.x + dx - size / 2, anchor.y + dy - size / 2


def shuffle(rng: Generator, names: Sequence[str]) -> list[str]:
    """Return the names in random order."""
    return [names[i] for i in rng.permutation(len(names))]


def random_word(rng: Generator, shortest: int) -> str:
    """Draw a word of `shortest` to five characters."""
    length = rng.integers(shortest, 6)
    return "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), length))


# Scenes.


@dataclass(slots=True)
class Board(Surface):
    """The surface of a scene: clutter or a uniform background, and the taken boxes. Sizes are in pixels.

    Attributes:
        side: Width and height.
        dense: True to fill the whole surface.
        largest, largest_text: Maximum size of a thing, and maximum height of a text.
        ground: (side, side, 3) float32, 0 to 255. None for clutter, which is drawn after everything is placed.
        tone: Mean of a uniform background; for clutter a value that is neither light nor dark.
        grain: Strength of the pixel noise, 0 for none; None for the default of clutter.
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
        """Draw a random empty board. Only large boards with a uniform background have larger things."""
        board = cls(side, dense)
        if rng.random() >= 0.3:  # 70 % are clutter, the others have a uniform background and maybe larger things
            return board
        board.grain = int(rng.integers(0, 6)) if rng.random() < 0.4 else 0
        board.ground = drawing.plain_ground(rng, side)
        board.tone = float(board.ground[0, 0].mean())
        if side >= 336:
            board.largest = 46
            board.largest_text = 34
        return board

    def claim_anywhere(self, rng: Generator, width: int, height: int, tries: int) -> Box | None:
        """Take and return a random free box; None if none was found."""
        ends = (self.side - width, self.side - height)
        corners = rng.integers(1, ends, (tries, 2))
        return self.claim(corners.tolist(), width, height)


def scene(split: str, index: int, side: int = 336, dense: bool = False) -> Scene:
    """Draw scene number `index` of a split.

    Args:
        split: A name in `SPLITS`.
        index: The number of the scene, from 0.
        side: Side in pixels, a multiple of 14. Objects have the same size in pixels for every side.
        dense: Fill the canvas (for the first training stage of the tower) instead of placing 1 to 8 objects.

    Raises:
        ValueError: If the side is not a multiple of 14.
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
    """Place words of two to five characters, where there is room.

    75 % of the scenes have one word; dense scenes have up to two per 84 pixels of their side.
    """
    texts = []
    if board.dense:
        count = int(rng.integers(0, 2 * (board.side // 84) + 1))
    else:
        count = int(rng.random() < 0.75)
    for _ in range(count):
        size = int(rng.integers(20, board.largest_text + 1))
        word = random_word(rng, 2)
        advances = [drawing.glyph_advance(character, size) for character in word]
        while sum(advances) > board.side - 4:
            del advances[-1]
        box = board.claim_anywhere(rng, sum(advances), size, 20)
        if box is not None:
            xs = box.left + np.cumsum(advances) - np.divide(advances, 2)
            texts.append(Lettering(word[: len(advances)], tuple(xs.tolist()), box.centre[1], size))
    return texts


def _place_things(rng: Generator, pairing: Generator, board: Board) -> list[Thing]:
    """Place things; in half of the scenes, chosen by `pairing`, mostly beside one another."""
    tries = 40
    share_beside = 0.0
    if not board.dense:
        tries = 12
        if pairing.random() < 0.5:
            share_beside = 0.7  # probability of a place beside another thing, if there is room
    things: list[Thing] = []
    for shape, colour in _scene_kinds(rng, board):
        size = int(rng.integers(16, board.largest + 1))
        box = None
        if things and pairing.random() < share_beside:
            anchor = drawing.pick(pairing, things)
            box = board.claim(_beside(pairing, board.side, size, anchor), size, size)
        if box is None:
            box = board.claim_anywhere(rng, size, size, tries)
        if box is not None:
            things.append(Thing(shape, colour, *box.centre, size))
    return things


def _scene_kinds(rng: Generator, board: Board) -> list[tuple[str, str]]:
    """Draw the shape and colour of each thing, no two alike, from few shapes and colours, so that counts exceed one."""
    most = min(5 * (board.side // 84) ** 2, 60)
    colours = list(drawing.COLOURS)
    shapes = list(drawing.SHAPES)
    if not board.dense:
        most = int(rng.integers(1, MOST.get(board.side, 8) + 1))
        colours = shuffle(rng, colours)[: rng.integers(2, 9)]
        shapes = shuffle(rng, shapes)[: rng.integers(2, 9)]
    if board.tone > LIGHT:
        colours = [colour for colour in colours if colour != "white"] or ["red"]
    kinds = list(product(shapes, colours))
    return [kinds[i] for i in rng.permutation(len(kinds))[:most]]


def _beside(rng: Generator, side: int, size: int, anchor: Thing) -> Corners:
    """Draw the upper left corner of a box close to a thing, on one of its four sides; empty outside the picture."""
    apart = (anchor.size + size) // 2 + int(rng.integers(2, 11))
    slip = int(rng.integers(-6, 7))
    left, top = map(int, corner_beside(rng, anchor, size, apart, slip))
    if min(left, top) >= 1 and max(left, top) < side - size:
        return [(left, top)]
    return []


Mark = tuple[NDArray[np.float32], float, float, NDArray[np.float64]]
"""A shape or character to draw: its mask (height, width), the x and y of its centre, and its colour (3,)."""


def _marks(rng: Generator, board: Board, things: list[Thing], texts: list[Lettering]) -> Iterator[Mark]:
    """Yield the marks of the things, then of the characters."""
    for thing in things:
        named = np.array(drawing.COLOURS[thing.colour])
        colour = named + rng.uniform(-16, 16, 3)
        if board.ground is not None:
            share = rng.random()
            colour += share * (drawing.pick(rng, drawing.PURE[thing.colour]) - named)
        yield drawing.shape_mask(thing.shape, thing.size), thing.x, thing.y, colour
    for text in texts:
        dark = rng.random() < 0.5 if DARK < board.tone < LIGHT else board.tone >= LIGHT
        # Nearly black or nearly white, whichever is visible on the background.
        ink = np.full(3, rng.uniform(0, 25) if dark else rng.uniform(225, 255))
        for character, x in zip(text.characters, text.xs, strict=True):
            yield drawing.glyph(character, text.size), x, text.y, ink


def _paint(rng: Generator, board: Board, marks: Iterator[Mark]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw the background and then the marks in order. Return the picture and its owner map."""
    canvas = board.ground
    if canvas is None:
        canvas = drawing.background(rng, board.side)
    owner = np.zeros((board.side, board.side), dtype=np.uint8)
    for number, (mask, x, y, colour) in enumerate(marks, start=1):
        height, width = mask.shape
        top = round(y - height / 2)
        left = round(x - width / 2)
        place = np.s_[top : top + height, left : left + width]
        region = canvas[place]  # (height, width, 3), a view: adding to it changes the canvas
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
    """A sketch before resizing. All positions are in pixels of the finished square.

    Attributes:
        side: Side of the finished square.
        fine: Pixels of the canvas per pixel of the finished square.
        inner: The box that is not padding.
        image: The picture so far, RGB.
        owner: The mark of each pixel of `image`: 0 is the background, things count up from 1, and characters count
            down from 255.
        characters: Number of characters drawn so far.
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
        """Draw a random empty canvas; 40 % are wide or tall."""
        fine = drawing.log_uniform(rng, 0.6, 2.2) if rng.random() >= 0.4 else 1.0
        short = side / float(rng.choice(RATIOS)) if rng.random() < 0.4 else float(side)
        near = (side - short) / 2
        far = (side + short) / 2
        inner = Box(0, near, side, far) if rng.random() < 0.6 else Box(near, 0, far, side)
        return cls(side, fine, inner, drawing.ground(rng, round(side * fine)))

    def pixels(self, box: Box) -> drawing.Pixels:
        """Convert a box to pixels of the canvas."""
        left, top, right, bottom = (round(value * self.fine) for value in box)
        return left, top, right, bottom

    def claim_anywhere(self, rng: Generator, width: float, height: float, tries: int) -> Box | None:
        """Take and return a random free box; None if none was found."""
        if self.inner.width - width < 3 or self.inner.height - height < 3:
            return None
        low = (self.inner.left + 1, self.inner.top + 1)
        high = (self.inner.right - width - 1, self.inner.bottom - height - 1)
        corners = rng.uniform(low, high, (tries, 2))
        return self.claim(corners.tolist(), width, height)

    def draw(self, thing: Thing, size: float, pen: drawing.Pen, colour: drawing.Rgb, mark: int) -> None:
        """Draw a thing, `size` pixels of the finished square large, and mark its pixels in `owner`."""
        centre = (thing.x * self.fine, thing.y * self.fine)
        size *= self.fine
        drawing.draw_shape(self.image, thing.shape, centre, size, pen, (colour, pen.edge))
        drawing.draw_shape(self.owner, thing.shape, centre, size, pen, (mark, mark))


def sketch(split: str, index: int, side: int = 336, crowded: bool = False) -> Scene:
    """Draw sketch number `index` of a split. A quarter show only text, 40 % only things, the others both.

    Args:
        split: A name in `SPLITS`.
        index: The number of the sketch, from 0.
        side: Side of the finished square in pixels, a multiple of 14.
        crowded: Draw up to eight lines of text in different fonts (for training the tower), where there is room.

    Raises:
        ValueError: If the side is not a multiple of 14.
    """
    if side % PATCH:
        raise ValueError(f"side is {side}; it must be a multiple of {PATCH}.")
    rng = rng_for(split, index, purpose=4)
    canvas = Canvas.draw_lot(rng, side)
    kind = rng.random()
    lines = 8 if crowded else int(kind < 0.6)
    texts = [text for _ in range(lines) if (text := write(rng, canvas)) is not None]
    things: list[Thing] = _draw_things(rng, canvas) if kind > 0.25 or not texts else []
    # A lookup table for marks: with 2 things and 3 characters, 1 2 stay, and 255 254 253 become 3 4 5.
    numbers = list(range(256))
    for character in range(canvas.characters):
        numbers[255 - character] = len(things) + 1 + character
    owner = canvas.owner.point(numbers).resize((side, side), Image.Resampling.NEAREST)
    image = _finish(rng, canvas)
    return Scene(image, tuple(things), tuple(texts), np.array(owner), sketched=True)


def _finish(rng: Generator, canvas: Canvas) -> NDArray[np.uint8]:
    """Pad and resize the canvas; 20 % are compressed as JPEG first."""
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
    """Draw one line of text, in 30 % of the cases on a plate; None if there is no room."""
    fine = canvas.fine
    name = drawing.pick(rng, drawing.FONTS)
    word = random_word(rng, 1)
    largest = min(100.0, canvas.inner.height * 0.6)
    size = drawing.log_uniform(rng, 17, largest)
    while (width := sum(map(drawing.font(name, round(size * fine)).getlength, word)) / fine) > canvas.inner.width - 16:
        size *= 0.85
    plate = rng.random() < 0.3
    margin = rng.uniform(0.1, 0.4) * size if plate else 2.0
    box = canvas.claim_anywhere(rng, width + 2 * margin, size + 2 * margin, 30)
    if box is None:
        return None
    ink = drawing.ink_on(rng, canvas.image, canvas.pixels(box), plate)
    bold = rng.random() < 0.2
    _, middle = box.centre
    start = ((box.left + margin) * fine, middle * fine)
    face = drawing.font(name, round(size * fine))
    xs = []
    for x, corner, mask in drawing.draw_characters(canvas.image, word, start, face, ink, bold):
        canvas.owner.paste(255 - canvas.characters, corner, mask)
        canvas.characters += 1
        xs.append(x / fine)
    return Lettering(word, tuple(xs), middle, round(size))


def _draw_things(rng: Generator, canvas: Canvas) -> list[Thing]:
    """Draw things of few or many kinds, anywhere or in rows, and return them."""
    kinds = _sketch_kinds(rng)
    # Sizes go from 16 pixels to the size at which all things together fill 38 % of the picture.
    room = 0.38 * canvas.inner.width * canvas.inner.height / len(kinds)
    most = max(18.0, min(LARGEST, canvas.inner.height * 0.7, room**0.5))
    size = rng.uniform(16, most) if rng.random() < 0.3 else drawing.log_uniform(rng, 16, most)
    uneven = rng.random() < 0.5
    paired = rng.random() < 0.3  # if True, 45 % of the things are placed beside an earlier one
    cells: Corners = _rows(rng, canvas.inner, size) if rng.random() < 0.25 else []
    pen = drawing.Pen.draw_lot(rng)
    tints = {colour: drawing.tint(rng, colour) for _, colour in kinds}
    things: list[Thing] = []
    for shape, colour in kinds:
        across = size
        if uneven and not cells:
            across *= rng.uniform(0.7, 1.3)
        across = min(max(across, 15), LARGEST)
        box = canvas.claim(cells, across, across)
        if box is None and paired and things and rng.random() < 0.45:
            anchor = drawing.pick(rng, things)
            box = canvas.claim(_beside_sketched(rng, canvas.inner, across, anchor), across, across)
        if box is None:
            box = canvas.claim_anywhere(rng, across, across, 25)
        if box is not None and drawing.stands_out(canvas.image, canvas.pixels(box), tints[colour]):
            thing = Thing(shape, colour, *box.centre, round(across))
            things.append(thing)
            canvas.draw(thing, across, pen, tints[colour], len(things))
    return things


def _sketch_kinds(rng: Generator) -> list[tuple[str, str]]:
    """Draw the shape and colour of each thing: all equal, one shape, one colour, a few groups, or any."""
    shapes = shuffle(rng, drawing.SHAPES)
    colours = shuffle(rng, list(drawing.MEANT))
    manner = rng.random()
    count = rng.integers(1, MOST_SKETCHED + 1)
    if manner < 0.4:
        shapes = shapes[:1]
        colours = colours[:1]
        count = max(count, rng.integers(1, MOST_SKETCHED + 1))  # larger counts, which are harder, come more often
    elif manner < 0.5:
        shapes = shapes[:1]
    elif manner < 0.6:
        colours = colours[:1]
    elif manner < 0.8:
        shapes = shapes[:2]
        colours = colours[: rng.integers(1, 4)]
    return [(drawing.pick(rng, shapes), drawing.pick(rng, colours)) for _ in range(count)]


def _rows(rng: Generator, inner: Box, size: float) -> Corners:
    """Return the upper left corners of a regular grid of cells at a random position, row by row."""
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
    """Draw the upper left corner of a box close to a thing, on one of its four sides; empty outside the canvas."""
    apart = (anchor.size + across) / 2 + rng.uniform(3, 14)
    slip = rng.uniform(-6, 6)
    left, top = corner_beside(rng, anchor, across, apart, slip)
    if left <= inner.left or top <= inner.top:
        return []
    if left + across >= inner.right or top + across >= inner.bottom:
        return []
    return [(left, top)]
