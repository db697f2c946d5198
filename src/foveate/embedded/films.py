"""Short synthetic films for the embedded model: things and a text appear, stay, disappear or show only briefly.

A film is a few frames, each a `Scene`. It is a pure function of (split, index, frames, side).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from foveate.embedded.drawing import MEANT, SHAPES, Pen, ground, stands_out, tint
from foveate.embedded.scenes import Box, Canvas, Lettering, Scene, Thing, rng_for, shuffle, write

FRAMES, SIDE = 8, 168
"""Frames of a film, and side of a frame in pixels: 144 vision tokens per frame."""

BRIEF = 4
"""A thing shows only briefly if it shows in at most a `BRIEF`th of the frames."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A thing or a text, and the frames that show it: from `start` up to, but not including, `stop`."""

    what: Thing | Lettering
    start: int
    stop: int

    @property
    def frames(self) -> int:
        """The number of frames that show it."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Film:
    """The frames in order, and everything that shows in any of them. All things have different names."""

    frames: tuple[Scene, ...]
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing or text on its own canvas, and the box that it fills there."""

    shown: Shown
    canvas: Canvas
    box: Box


def film(split: str, index: int, frames: int = FRAMES, side: int = SIDE) -> Film:
    """Draw film number `index` of a split.

    Args:
        split: A name in `foveate.embedded.scenes.SPLITS`.
        index: The number of the film, from 0.
        frames: The number of frames, 4 or more.
        side: Side of a frame in pixels, a multiple of 14.
    """
    rng = rng_for(split, index, purpose=6)
    everywhere = Box(0, 0, side, side)
    empty = Canvas(side, 2.0, everywhere, ground(rng, 2 * side))
    pen = Pen.draw_lot(rng)
    texts = _text_layers(rng, empty, frames)
    things = _thing_layers(rng, empty, pen, frames)
    scenes = [_frame(empty, things + texts, number) for number in range(frames)]
    shown = [layer.shown for layer in texts + things]
    return Film(tuple(scenes), tuple(shown))


def _another(canvas: Canvas) -> Canvas:
    """Return a copy to draw on. Copies share the list of taken boxes, so that layers do not overlap."""
    return replace(canvas, image=canvas.image.copy())


def _text_layers(rng: Generator, empty: Canvas, frames: int) -> list[Layer]:
    """Draw a text in 40 % of the films; it shows in at most half of the frames."""
    if rng.random() >= 0.4:
        return []
    canvas = _another(empty)
    text = write(rng, canvas)
    if text is None:
        return []
    start = int(rng.integers(0, frames))
    stop = start + int(rng.integers(1, frames // 2 + 1))
    shown = Shown(text, start, min(frames, stop))
    return [Layer(shown, canvas, canvas.taken[-1])]


def _thing_layers(rng: Generator, empty: Canvas, pen: Pen, frames: int) -> list[Layer]:
    """Draw up to two to four things of different shapes and colours, where there is room and they stand out."""
    shapes = shuffle(rng, SHAPES)
    colours = shuffle(rng, list(MEANT))
    count = rng.integers(2, 5)
    layers: list[Layer] = []
    for shape, colour in zip(shapes[:count], colours[:count], strict=True):
        size = rng.uniform(16, 46)
        rgb = tint(rng, colour)
        box = empty.claim_anywhere(rng, size, size, 25)
        if box is None or not stands_out(empty.image, empty.pixels(box), rgb):
            continue
        thing = Thing(shape, colour, *box.centre, round(size))
        canvas = _another(empty)
        canvas.draw(thing, size, pen, rgb, mark=255)
        start, stop = _when(rng, frames, first=not layers)
        layers.append(Layer(Shown(thing, start, stop), canvas, box))
    return layers


def _when(rng: Generator, frames: int, first: bool) -> tuple[int, int]:
    """Draw when a thing shows: in all frames, from some frame on, for a while, or briefly. Return start and stop."""
    manner = rng.random()
    if manner < 0.15 or (first and manner < 0.5):
        return 0, frames
    if manner < 0.6:
        return int(rng.integers(1, frames)), frames
    start = int(rng.integers(0, frames - 1))
    longest = max(1, frames // BRIEF) if manner < 0.85 else frames
    return start, min(frames, start + int(rng.integers(1, longest + 1)))


def _frame(empty: Canvas, layers: list[Layer], number: int) -> Scene:
    """Compose the scene of one frame from the layers that it shows: things, then the text."""
    now = [layer for layer in layers if layer.shown.start <= number < layer.shown.stop]
    image = empty.image.copy()
    owner = np.zeros((image.height, image.width), dtype=np.int16)
    for place, layer in enumerate(now, start=1):
        left, top, right, bottom = empty.pixels(layer.box)
        part = (left - 2, top - 2, right + 2, bottom + 2)
        image.paste(layer.canvas.image.crop(part), part)
        # A thing is marked 255, and the characters of a text 255, 254, … By `place + 255 - mark`, the thing at place 2
        # becomes 2, and the characters at place 3 become 3, 4, …
        marks = np.asarray(layer.canvas.owner, dtype=np.int16)
        owner = np.where(marks > 0, place + 255 - marks, owner)
    small = image.resize((empty.side, empty.side), Image.Resampling.BICUBIC)
    small_owner = owner[::2, ::2].astype(np.uint8)
    shown = [layer.shown.what for layer in now]
    things = tuple(what for what in shown if isinstance(what, Thing))
    texts = tuple(what for what in shown if isinstance(what, Lettering))
    return Scene(np.array(small), things, texts, small_owner)
