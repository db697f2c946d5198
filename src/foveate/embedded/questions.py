"""Questions about a scene or a film, each with its one right answer.

A question is asked only if its answer is unambiguous: what it names occurs once, and positions that are compared differ
by a visible margin.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from numpy.random import Generator

from foveate.embedded import TASKS
from foveate.embedded.drawing import COLOURS, SHAPES, pick
from foveate.embedded.films import BRIEF, Film, Shown
from foveate.embedded.scenes import Lettering, Scene, Thing, rng_for

MARGIN = 14.0
"""Pixels, one patch: things nearer than this along an axis have no order that is asked for."""
BESIDE, ASIDE = 14.0, 9.0
"""Pixels: how wide the gap to what is just beside a thing may be, and how far the two centres may be out of line.
More beside large things, see `_beside`."""
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Each side's axis and direction."""
NAMES = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
"""Of all things that there can be."""


@dataclass(frozen=True, slots=True)
class TaskQuestion:
    """One question, the answer a model should give word for word, and the task it belongs to."""

    task: str
    question: str
    answer: str


def all_questions(scene: Scene, rng: Generator) -> dict[str, list[TaskQuestion]]:
    """Every question that this scene allows, by task; tasks without any are left out.

    `rng` only chooses which absent objects are asked for.
    """
    return by_task(
        [
            *_objects(scene),
            *_existence(scene, rng),
            *relation_questions(scene),
            *_order(scene),
            *_text(scene),
            *_absent(scene, rng),
        ]
    )


def one_per_task(scene: Scene, split: str, index: int) -> list[TaskQuestion]:
    """One question of each task that the scene allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    questions = all_questions(scene, rng)
    return [evenly(questions[task], rng) for task in TASKS if task in questions]


def film_questions(film: Film, rng: Generator) -> list[TaskQuestion]:
    """Every question that a film allows; `rng` only chooses what is asked for that never shows."""
    things = [shown for shown in film.shown if isinstance(shown.what, Thing)]
    texts = [shown for shown in film.shown if isinstance(shown.what, Lettering)]
    return [
        *_appearance(things),
        *_brief(things, len(film.frames)),
        *_ever({shown.what.name for shown in things}, rng),
        *(TaskQuestion("film text", "What does the text say?", shown.what.name) for shown in texts),
    ]


def one_per_film_task(film: Film, split: str, index: int) -> list[TaskQuestion]:
    """One question of each task that the film allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    groups = by_task(film_questions(film, rng))
    return [pick(rng, questions) for questions in groups.values()]


def by_task(questions: Iterable[TaskQuestion]) -> dict[str, list[TaskQuestion]]:
    """The questions of each task; tasks in the order of their first question."""
    groups: dict[str, list[TaskQuestion]] = {}
    for question in questions:
        groups.setdefault(question.task, []).append(question)
    return groups


def evenly(questions: list[TaskQuestion], rng: Generator) -> TaskQuestion:
    """Draw an answer first, then a question that has it."""
    answers = {question.answer for question in questions}
    answer = pick(rng, sorted(answers))
    return pick(rng, [question for question in questions if question.answer == answer])


# About a scene.


def _objects(scene: Scene) -> Iterator[TaskQuestion]:
    """Colour, shape and place of what is named by one word or two that fit no other; and counts."""
    shapes = [thing.shape for thing in scene.things]
    colours = [thing.colour for thing in scene.things]
    for thing in scene.things:
        if shapes.count(thing.shape) == 1:
            yield TaskQuestion("colour", f"What colour is the {thing.shape}?", thing.colour)
        if colours.count(thing.colour) == 1:
            yield TaskQuestion("shape", f"What shape is the {thing.colour} object?", thing.shape)
        where = _quadrant(scene, thing.x, thing.y)
        if where and _is_alone(thing, scene):
            yield TaskQuestion("quadrant", f"Where is the {thing.name}?", where)
    yield _count("objects", len(shapes))
    for shape in sorted(set(shapes)):
        yield _count(_plural(shape), shapes.count(shape))
    for colour in sorted(set(colours)):
        yield _count(f"{colour} objects", colours.count(colour))


def _count(what: str, number: int) -> TaskQuestion:
    return TaskQuestion("count", f"How many {what} are there?", str(number))


def _is_alone(thing: Thing, scene: Scene) -> bool:
    """Whether its name tells this thing from all others."""
    names = [other.name for other in scene.things]
    return names.count(thing.name) == 1


def _existence(scene: Scene, rng: Generator) -> Iterator[TaskQuestion]:
    """Whether there is a thing: each that is there, and as many that are not, mostly of shapes and colours that are."""
    present = {thing.name for thing in scene.things}
    absent: set[str] = set()
    while len(absent) < len(present):
        near: set[str] = _recombine(present) - present - absent if rng.random() < 0.75 else set()
        candidates = near or NAMES - present - absent
        absent.add(pick(rng, sorted(candidates)))
    for name in sorted(present | absent):
        yield _yes_or_no("existence", f"Is there {_with_article(name)}?", name in present)


def _recombine(names: set[str]) -> set[str]:
    """Every colour with every shape that occurs in the names."""
    pairs = [name.split() for name in names]
    return {f"{colour} {shape}" for colour, _ in pairs for _, shape in pairs}


def _yes_or_no(task: str, question: str, answer: bool) -> TaskQuestion:
    return TaskQuestion(task, question, ("no", "yes")[answer])


def _with_article(name: str) -> str:
    """A red star, an orange star."""
    if name[0] in "aeiou":
        return f"an {name}"
    return f"a {name}"


def _absent(scene: Scene, rng: Generator) -> Iterator[TaskQuestion]:
    """In one sketch of four with things, how many there are of a shape or a colour that is not there: none."""
    if not scene.sketched:
        return
    shapes = {thing.shape for thing in scene.things}
    colours = {thing.colour for thing in scene.things}
    missing = [_plural(shape) for shape in SHAPES if shape not in shapes]
    missing += [f"{colour} objects" for colour in COLOURS if colour not in colours]
    if scene.things and missing and rng.random() < 0.25:
        yield _count(pick(rng, missing), 0)


def _order(scene: Scene) -> Iterator[TaskQuestion]:
    """Lists of all things along an axis, where no two are too near to tell."""
    for axis, direction in enumerate(("left to right", "top to bottom")):
        line = sorted(scene.things, key=lambda thing: thing.centre[axis])
        gaps = [second.centre[axis] - first.centre[axis] for first, second in pairwise(line)]
        if 2 <= len(line) <= 5 and min(gaps) >= MARGIN:
            names = ", ".join(thing.name for thing in line)
            yield TaskQuestion(f"list {direction}", f"List the objects from {direction}.", names)


def relation_questions(scene: Scene) -> Iterator[TaskQuestion]:
    """What is just beside a thing on a side, where that is one thing."""
    for thing in scene.things:
        for side, near in zip(SIDES, neighbours(scene, thing), strict=True):
            if len(near) == 1 and _is_alone(thing, scene):
                yield TaskQuestion("relation", f"What is just {side} the {thing.name}?", near[0].name)


def neighbours(scene: Scene, thing: Thing) -> list[tuple[Thing, ...]]:
    """What stands close to a thing on each side, in the order of `SIDES`: nothing, one thing, or several.

    Several where it is not clear which, if any, is just beside it.
    """
    others = [other for other in scene.things if other is not thing]
    sides = []
    for axis, sign in SIDES.values():
        near = tuple(other for other in others if _beside(thing, other, axis, sign, reach=1))
        about = tuple(other for other in others if _beside(thing, other, axis, sign, reach=2))
        if about and not len(near) == len(about) == 1:
            near = (*about, *about)  # several, even where one thing stands too far away to be just beside it
        sides.append(near)
    return sides


def _beside(thing: Thing, other: Thing, axis: int, sign: int, reach: float) -> bool:
    """Whether `other` stands on that side of `thing`, within `reach` times what counts as just beside it."""
    size = (thing.size + other.size) / 2
    ahead = sign * (other.centre[axis] - thing.centre[axis])
    aside = abs(other.centre[1 - axis] - thing.centre[1 - axis])
    near = max(BESIDE, 0.6 * size - 14)
    straight = max(ASIDE, 0.3 * size - 5)
    return ahead > 0 and ahead - size <= reach * near and aside <= reach * straight


def _text(scene: Scene) -> Iterator[TaskQuestion]:
    """About the text, if there is one alone."""
    if len(scene.texts) != 1:
        return
    (text,) = scene.texts
    yield TaskQuestion("read text", "What does the text say?", text.characters)
    for ordinal, character in zip(("first", "second", "third", "fourth", "fifth"), text.characters, strict=False):
        yield TaskQuestion("character", f"What is the {ordinal} character?", character)
    if where := _quadrant(scene, text.x, text.y):
        yield TaskQuestion("text quadrant", "Where is the text?", where)


def _quadrant(scene: Scene, x: float, y: float) -> str | None:
    """Name of the quadrant, or None within 6 % of the side from a middle line."""
    middle = scene.side / 2
    near = min(abs(x - middle), abs(y - middle))
    if near < 0.06 * scene.side:
        return None
    row = ("bottom", "top")[y < middle]
    column = ("right", "left")[x < middle]
    return f"{row} {column}"


def _plural(shape: str) -> str:
    if shape.endswith("s"):
        return f"{shape}es"
    return f"{shape}s"


# About a film.


def _appearance(things: Sequence[Shown]) -> Iterator[TaskQuestion]:
    """What comes first and last, and the order of all, where no two come at once."""
    if len(things) < 2:
        return
    names: dict[int, list[str]] = {}
    for shown in things:
        names.setdefault(shown.start, []).append(shown.what.name)
    arrivals = [names[start] for start in sorted(names)]
    if len(arrivals[0]) == 1:
        yield TaskQuestion("first", "Which object appears first?", arrivals[0][0])
    if len(arrivals[-1]) == 1:
        yield TaskQuestion("last", "Which object appears last?", arrivals[-1][0])
    if len(arrivals) == len(things):
        order = ", ".join(name for (name,) in arrivals)
        yield TaskQuestion("order", "List the objects in order of appearance.", order)


def _brief(things: Sequence[Shown], frames: int) -> Iterator[TaskQuestion]:
    """What shows briefly, where all else shows in half of the frames or more."""
    short = [shown for shown in things if shown.frames * BRIEF <= frames]
    long = [shown for shown in things if shown.frames * 2 >= frames]
    if len(short) == 1 and len(long) == len(things) - 1:
        yield TaskQuestion("brief", "Which object is seen only briefly?", short[0].what.name)


def _ever(present: set[str], rng: Generator) -> Iterator[TaskQuestion]:
    """Whether a thing shows at all: each that does, and up to as many of their colours and shapes that do not."""
    absent = sorted(_recombine(present) - present)
    asked = absent[: len(present)] if rng.random() < 0.5 else absent[-len(present) :]
    for name in (*sorted(present), *asked):
        yield _yes_or_no("ever", f"Does {_with_article(name)} appear?", name in present)
