"""Short films for the embedded model: things that come, stay or go, one that shows only briefly, and a text.

A film is a handful of frames, each a `Scene`, and a pure function of (split, index, side).
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from PIL import Image

from foveate.embedded.drawing import MEANT, SHAPES, Pen, ground, stands_out, tint
from foveate.embedded.scenes import Box, Canvas, Lettering, Scene, Thing, rng_for, shuffle, write

FRAMES, SIDE = 8, 168
"""Frames of a film, and pixels of a side of each: 144 vision tokens a frame."""

BRIEF = 4
"""What shows for no more than one frame in so many is seen only briefly; for half of them, it stays."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A thing or a text, and when it shows: from frame `start` to before frame `stop`."""

    what: Thing | Lettering
    start: int
    stop: int

    @property
    def frames(self) -> int:
        """How many frames show it."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Film:
    """Frames in order, and everything that shows in any of them; things have different names."""

    frames: tuple[Scene, ...]
    shown: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing or text, alone on a canvas of its own, and the box that it fills there."""

    shown: Shown
    canvas: Canvas
    box: Box


def film(split: str, index: int, frames: int = FRAMES, side: int = SIDE) -> Film:
    """Draw film number `index` of a split.

    Args:
        split: A name in `foveate.embedded.scenes.SPLITS`.
        index: From 0 on.
        frames: How many; 4 or more.
        side: Pixels, a multiple of 14.
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
    """A copy to draw on, which shares what is taken: layers do not overlap."""
    return replace(canvas, image=canvas.image.copy())


def _text_layers(rng: Generator, empty: Canvas, frames: int) -> list[Layer]:
    """In two films of five a text, for up to half of the frames."""
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
    """Two to four things, no two of one shape or one colour, where there is room and they can be seen."""
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
    """From the start on, from some frame on, for a while, or just briefly."""
    manner = rng.random()
    if manner < 0.15 or (first and manner < 0.5):
        return 0, frames
    if manner < 0.6:
        return int(rng.integers(1, frames)), frames
    start = int(rng.integers(0, frames - 1))
    longest = max(1, frames // BRIEF) if manner < 0.85 else frames
    return start, min(frames, start + int(rng.integers(1, longest + 1)))


def _frame(empty: Canvas, layers: list[Layer], number: int) -> Scene:
    """The scene of one frame, from the layers that show then: things, then the text."""
    now = [layer for layer in layers if layer.shown.start <= number < layer.shown.stop]
    image = empty.image.copy()
    owner = np.zeros((image.height, image.width), dtype=np.int16)
    for place, layer in enumerate(now, start=1):
        left, top, right, bottom = empty.pixels(layer.box)
        part = (left - 2, top - 2, right + 2, bottom + 2)
        image.paste(layer.canvas.image.crop(part), part)
        # A thing's mark is 255; a text's characters are marked from there downwards, and count on upwards.
        marks = np.asarray(layer.canvas.owner, dtype=np.int16)
        owner = np.where(marks > 0, place + 255 - marks, owner)
    small = image.resize((empty.side, empty.side), Image.Resampling.BICUBIC)
    small_owner = owner[::2, ::2].astype(np.uint8)
    shown = [layer.shown.what for layer in now]
    things = tuple(what for what in shown if isinstance(what, Thing))
    texts = tuple(what for what in shown if isinstance(what, Lettering))
    return Scene(np.array(small), things, texts, small_owner)
