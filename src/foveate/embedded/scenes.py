"""Synthetic scenes: coloured shapes and a short text on a cluttered background.

A scene is a pure function of (split, index, side, dense). Held-out scenes can never be drawn in
training, because the split is part of the seed. NumPy and Pillow only.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.embedded.drawing import COLOURS, PURE, SHAPES, background, glyph, glyph_advance, plain, shape_mask

__all__ = ["CHARACTERS", "PATCH", "SPLITS", "Scene", "Text", "Thing", "rng_for", "scene"]

PATCH = 14
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
MOST = {84: 4}  # objects on small canvases; 8 on all others
SPLITS = {"train": 1, "held-out": 2, "demo": 3}

PAIRED = 0.5  # share of scenes in which things stand beside one another
BESIDE = 0.7  # share of their things that are put beside an earlier one, if there is room

PLAIN = 0.3  # share of scenes on an even ground, with larger things, as a person would draw them

LIGHT, DARK = 165.0, 55.0  # tones of a ground on which white, or dark ink, would not be seen

Box = tuple[int, int, int, int]  # left, top, width, height


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
class Text:
    """One line of capitals and digits. `xs` are the characters' centres, `y` the line's, in pixels."""

    characters: str
    xs: tuple[float, ...]
    y: float
    size: int

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
        texts: At most one, except in dense scenes.
        owner: (side, side) uint8: 0 background, then things and then characters, counted from 1.
        sketched: Whether it is drawn as in `foveate.embedded.sketches`; things may then be equal.
    """

    image: NDArray[np.uint8]
    things: tuple[Thing, ...]
    texts: tuple[Text, ...]
    owner: NDArray[np.uint8]
    sketched: bool = False

    @property
    def side(self) -> int:
        """Width and height in pixels."""
        return int(self.image.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Style:
    """How a plain scene is drawn.

    Attributes:
        ground: (side, side, 3) float32, 0-255.
        largest, largest_text: Pixels.
        grain: Of the pixel noise, 0 for none.
    """

    ground: NDArray[np.float32]
    largest: int
    largest_text: int
    grain: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, side: int) -> "Style":
        """A style by lot; only large canvases have room for large things."""
        large = side >= 336
        grain = int(rng.integers(0, 6)) if rng.random() < 0.4 else 0
        return cls(plain(rng, side), 46 if large else 30, 34 if large else 26, grain)

    @property
    def tone(self) -> float:
        """Mean of the ground."""
        return float(self.ground[0, 0].mean())


def rng_for(split: str, index: int, purpose: int = 0) -> np.random.Generator:
    """The generator of one scene.

    `purpose` separates drawing (0), questions (1), pairs (2), style (3), sketches (4), whether a picture of training is
    one (5), and films (6).
    """
    return np.random.default_rng([SPLITS[split], index, purpose])


def scene(split: str, index: int, side: int = 336, dense: bool = False) -> Scene:
    """Draw scene number `index` of a split.

    Args:
        split: A name in `SPLITS`.
        index: From 0 on.
        side: Pixels, a multiple of 14. Objects keep their size in pixels on every side.
        dense: Fill the canvas (for the tower's first stage) instead of placing 1 to 8 objects.
    """
    if side % PATCH:
        raise ValueError(f"side is {side}; it must be a multiple of {PATCH}.")
    rng = rng_for(split, index)
    taken: list[Box] = []
    lines = int(rng.integers(0, 2 * (side // 84) + 1)) if dense else int(rng.random() < 0.75)
    styling = rng_for(split, index, purpose=3)
    style = Style.drawn(styling, side) if styling.random() < PLAIN else None
    texts = _place_texts(rng, side, taken, lines, style)
    most = 5 * (side // 84) ** 2 if dense else int(rng.integers(1, MOST.get(side, 8) + 1))
    pairing = rng_for(split, index, purpose=2)
    pairs = pairing if not dense and pairing.random() < PAIRED else None
    things = _place_things(rng, side, taken, min(most, 60), dense, pairs, style)
    image, owner = _paint(rng, side, things, texts, style)
    return Scene(image, things, texts, owner)


def _free_box(rng: np.random.Generator, side: int, width: int, height: int, taken: list[Box], tries: int) -> Box | None:
    """A place at least 2 px from everything taken, or None; records the place it returns."""
    for left, top in rng.integers(1, (side - width, side - height), (tries, 2)).tolist():
        if _is_free((left, top, width, height), taken):
            taken.append((left, top, width, height))
            return taken[-1]
    return None


def _is_free(box: Box, taken: list[Box]) -> bool:
    left, top, width, height = box
    return all(
        left >= l + w + 2 or l >= left + width + 2 or top >= t + h + 2 or t >= top + height + 2
        for l, t, w, h in taken  # noqa: E741
    )


def _box_beside(rng: np.random.Generator, side: int, size: int, things: list[Thing], taken: list[Box]) -> Box | None:
    """A place close to a thing, on one of its four sides, or None; records the place it returns."""
    anchor = things[int(rng.integers(len(things)))]
    apart = (anchor.size + size) // 2 + int(rng.integers(2, 11))
    slip = int(rng.integers(-6, 7))
    dx, dy = ((-apart, slip), (apart, slip), (slip, -apart), (slip, apart))[int(rng.integers(4))]
    box = int(anchor.x + dx - size / 2), int(anchor.y + dy - size / 2), size, size
    if not (1 <= box[0] < side - size and 1 <= box[1] < side - size and _is_free(box, taken)):
        return None
    taken.append(box)
    return box


def _place_texts(
    rng: np.random.Generator, side: int, taken: list[Box], count: int, style: Style | None
) -> tuple[Text, ...]:
    texts = []
    for _ in range(count):
        size = int(rng.integers(20, (style.largest_text if style else 26) + 1))
        word = "".join(CHARACTERS[i] for i in rng.integers(0, len(CHARACTERS), int(rng.integers(2, 6))))
        advances = [glyph_advance(c, size) for c in word]
        while sum(advances) > side - 4:
            word, advances = word[:-1], advances[:-1]
        box = _free_box(rng, side, sum(advances), size, taken, 20)
        if box is None:
            continue
        ends = box[0] + np.cumsum(advances)
        xs = tuple(float(end - advance / 2) for end, advance in zip(ends, advances, strict=True))
        texts.append(Text(word, xs, box[1] + size / 2, size))
    return tuple(texts)


def _place_things(
    rng: np.random.Generator,
    side: int,
    taken: list[Box],
    most: int,
    dense: bool,
    pairs: np.random.Generator | None,
    style: Style | None,
) -> tuple[Thing, ...]:
    colours, shapes = list(COLOURS), list(SHAPES)
    if not dense:  # few kinds, so that counts above one happen
        colours = [colours[i] for i in rng.permutation(8)[: rng.integers(2, 9)]]
        shapes = [shapes[i] for i in rng.permutation(8)[: rng.integers(2, 9)]]
    if style and style.tone > LIGHT:
        colours = [colour for colour in colours if colour != "white"] or ["red"]
    kinds = [(shape, colour) for shape in shapes for colour in colours]
    things: list[Thing] = []
    for pick in rng.permutation(len(kinds))[:most]:
        size = int(rng.integers(16, (style.largest if style else 30) + 1))
        box = None
        if pairs is not None and things and pairs.random() < BESIDE:
            box = _box_beside(pairs, side, size, things, taken)
        if box is None:
            box = _free_box(rng, side, size, size, taken, 40 if dense else 12)
        if box is not None:
            shape, colour = kinds[int(pick)]
            things.append(Thing(shape, colour, box[0] + size / 2, box[1] + size / 2, size))
    return tuple(things)


def _paint(
    rng: np.random.Generator, side: int, things: tuple[Thing, ...], texts: tuple[Text, ...], style: Style | None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    canvas = style.ground.copy() if style else background(rng, side)
    owner = np.zeros((side, side), dtype=np.uint8)
    marks: list[tuple[NDArray[np.float32], float, float, NDArray[np.float64]]] = []
    for thing in things:
        colour = np.array(COLOURS[thing.colour]) + rng.uniform(-16, 16, 3)
        if style:
            pure = PURE[thing.colour]
            colour += rng.random() * (np.array(pure[int(rng.integers(len(pure)))]) - COLOURS[thing.colour])
        marks.append((shape_mask(thing.shape, thing.size), thing.x, thing.y, colour))
    for text in texts:
        dark = rng.random() < 0.5 if style is None or DARK < style.tone < LIGHT else style.tone >= LIGHT
        ink = rng.uniform(0, 25) if dark else rng.uniform(225, 255)
        for character, x in zip(text.characters, text.xs, strict=True):
            marks.append((glyph(character, text.size), x, text.y, np.full(3, ink)))
    for number, (mask, x, y, colour) in enumerate(marks, start=1):
        height, width = mask.shape
        top, left = round(y - height / 2), round(x - width / 2)
        region = canvas[top : top + height, left : left + width]
        region += mask[:, :, None] * (colour.astype(np.float32) - region)
        owner[top : top + height, left : left + width][mask > 0.5] = number
    grain = style.grain if style else int(rng.integers(3, 12))
    canvas += rng.integers(-grain, grain + 1, canvas.shape, dtype=np.int8)
    return np.clip(canvas, 0, 255).astype(np.uint8), owner
