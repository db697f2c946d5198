"""Short films for the embedded model: things that come, stay or go, one that shows only briefly, and a text.

A film is a handful of frames, each a `Scene`, and a pure function of (split, index, side).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from foveate.embedded import FILM_TASKS
from foveate.embedded.drawing import SHAPES
from foveate.embedded.grounds import ground
from foveate.embedded.questions import Question, article
from foveate.embedded.scenes import Scene, Text, Thing, rng_for
from foveate.embedded.sketches import MEANT, Canvas, free_box, stands_out, tint, write
from foveate.embedded.strokes import Look, draw_shape

__all__ = ["FILM_TASKS", "FRAMES", "SIDE", "Film", "Shown", "film", "film_questions", "one_per_film_task"]

PURPOSE = 6  # of the generator, see `rng_for`

FRAMES, SIDE = 8, 168
"""Frames of a film, and pixels of a side of each: 144 vision tokens a frame."""

BRIEF = 4
"""What shows for no more than one frame in so many is seen only briefly; for half of them, it stays."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A thing or a text, and when it shows: from frame `start` to before frame `stop`."""

    what: Thing | Text
    start: int
    stop: int

    @property
    def frames(self) -> int:
        """How many frames show it."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing or text alone on the ground, the pixels that are its own, and the box that it may fill."""

    picture: Image.Image
    owner: Image.Image
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Film:
    """Frames in order, and everything that shows in any of them; things have different names."""

    frames: tuple[Scene, ...]
    shown: tuple[Shown, ...]


def film(split: str, index: int, frames: int = FRAMES, side: int = SIDE) -> Film:
    """Draw film number `index` of a split.

    Args:
        split: A name in `foveate.embedded.scenes.SPLITS`.
        index: From 0 on.
        frames: How many; 4 or more.
        side: Pixels, a multiple of 14.
    """
    rng = rng_for(split, index, PURPOSE)
    canvas = Canvas(side, 2.0, (0, 0, side, side))
    blank = ground(rng, 2 * side)
    look, taken = Look.drawn(rng), list[tuple[float, float, float, float]]()
    shown: list[Shown] = []
    layers: list[Layer] = []
    if rng.random() < 0.4:
        picture, owner = blank.copy(), Image.new("L", blank.size)
        for text in write(rng, canvas, picture, owner, taken):
            start = int(rng.integers(0, frames))
            shown.append(Shown(text, start, min(frames, start + int(rng.integers(1, frames // 2 + 1)))))
            layers.append(Layer(picture, owner, canvas.pixels(taken[-1])))
    names = [(SHAPES[i], list(MEANT)[j]) for i, j in zip(rng.permutation(8), rng.permutation(8), strict=True)]
    for shape, colour in names[: int(rng.integers(2, 5))]:
        size, rgb = float(rng.uniform(16, 46)), tint(rng, colour)
        box = free_box(rng, canvas, size, size, taken, 25)
        if box is None or not stands_out(blank, canvas.pixels(box), rgb):
            continue
        thing = Thing(shape, colour, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, round(size))
        picture, owner = blank.copy(), Image.new("L", blank.size)
        centre = 2 * thing.x, 2 * thing.y
        draw_shape(ImageDraw.Draw(picture), shape, centre, 2 * size, rgb, look, look.edge)
        draw_shape(ImageDraw.Draw(owner), shape, centre, 2 * size, 255, look, 255)
        shown.append(Shown(thing, *_when(rng, frames, first=not any(isinstance(s.what, Thing) for s in shown))))
        layers.append(Layer(picture, owner, canvas.pixels(box)))
    return Film(tuple(_frame(blank, shown, layers, number, side) for number in range(frames)), tuple(shown))


def _when(rng: np.random.Generator, frames: int, first: bool) -> tuple[int, int]:
    """From the start on, from some frame on, for a while, or just briefly."""
    manner = rng.random()
    if manner < (0.5 if first else 0.15):
        return 0, frames
    if manner < 0.6:
        return int(rng.integers(1, frames)), frames
    start = int(rng.integers(0, frames - 1))
    longest = max(1, frames // BRIEF) if manner < 0.85 else frames
    return start, min(frames, start + int(rng.integers(1, longest + 1)))


def _frame(blank: Image.Image, shown: list[Shown], layers: list[Layer], number: int, side: int) -> Scene:
    """The scene of one frame: its things, then its text."""
    now = [(one.what, layer) for one, layer in zip(shown, layers, strict=True) if one.start <= number < one.stop]
    now.sort(key=lambda each: isinstance(each[0], Text))
    things = tuple(what for what, _ in now if isinstance(what, Thing))
    image, owner = blank.copy(), np.zeros((blank.height, blank.width), dtype=np.uint8)
    for place, (what, layer) in enumerate(now, start=1):
        left, top, right, bottom = (layer.box[0] - 2, layer.box[1] - 2, layer.box[2] + 2, layer.box[3] + 2)
        image.paste(layer.picture.crop((left, top, right, bottom)), (left, top))
        marks = np.asarray(layer.owner, dtype=np.int16)
        numbers = place if isinstance(what, Thing) else 256 - marks + len(things)
        owner = np.where(marks > 0, numbers, owner)
    small = image.resize((side, side), Image.Resampling.BICUBIC)
    texts = tuple(what for what, _ in now if isinstance(what, Text))
    return Scene(np.array(small), things, texts, owner[::2, ::2].astype(np.uint8))


def film_questions(one: Film, rng: np.random.Generator) -> list[Question]:
    """Every question that a film allows; `rng` only chooses what is asked for that never shows."""
    things = [each for each in one.shown if isinstance(each.what, Thing)]
    return [*_order(things), *_brief(things, len(one.frames)), *_ever(things, rng), *_text(one)]


def one_per_film_task(one: Film, split: str, index: int) -> list[Question]:
    """One question of each task that the film allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    found: dict[str, list[Question]] = {}
    for question in film_questions(one, rng):
        found.setdefault(question.task, []).append(question)
    return [each[int(rng.integers(len(each)))] for each in found.values()]


def _order(things: list[Shown]) -> Iterator[Question]:
    starts = [each.start for each in things]
    names = {each.start: each.what.name for each in things if isinstance(each.what, Thing)}
    if not things or len(things) < 2:
        return
    if starts.count(min(starts)) == 1:
        yield Question("first", "Which object appears first?", names[min(starts)])
    if starts.count(max(starts)) == 1:
        yield Question("last", "Which object appears last?", names[max(starts)])
    if len(names) == len(things):
        yield Question(
            "order", "List the objects in order of appearance.", ", ".join(names[at] for at in sorted(names))
        )


def _brief(things: list[Shown], frames: int) -> Iterator[Question]:
    short = [each for each in things if each.frames * BRIEF <= frames]
    if len(short) == 1 and all(each is short[0] or each.frames * 2 >= frames for each in things):
        (what,) = [each.what for each in short if isinstance(each.what, Thing)]
        yield Question("brief", "Which object is seen only briefly?", what.name)


def _ever(things: list[Shown], rng: np.random.Generator) -> Iterator[Question]:
    present = [each.what for each in things if isinstance(each.what, Thing)]
    names = {what.name for what in present}
    mixed = sorted({f"{a.colour} {b.shape}" for a in present for b in present} - names)
    asked = [*sorted(names), *mixed[: len(names)]] if rng.random() < 0.5 else [*sorted(names), *mixed[-len(names) :]]
    for name in asked:
        yield Question("ever", f"Does {article(name)} {name} appear?", "yes" if name in names else "no")


def _text(one: Film) -> Iterator[Question]:
    for each in one.shown:
        if isinstance(each.what, Text):
            yield Question("film text", "What does the text say?", each.what.characters)
