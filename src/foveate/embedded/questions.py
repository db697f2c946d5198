"""Questions about a scene or a film, each with its only right answer.

A question is asked only if its answer is unambiguous: the thing that it names occurs once, and compared positions
differ by a visible margin.
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
"""Smallest distance along an axis, in pixels (one patch), for questions about the order of things."""
BESIDE, ASIDE = 14.0, 9.0
"""Two things are beside each other if the gap between them is at most `BESIDE` pixels and their centres are at most
`ASIDE` pixels out of line. Larger things allow more, see `_beside`."""
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""The axis (0 is x, 1 is y) and the direction of each side."""
NAMES = {f"{colour} {shape}" for colour in COLOURS for shape in SHAPES}
"""The names of all possible things."""


@dataclass(frozen=True, slots=True)
class TaskQuestion:
    """A question, the answer that a model should give word for word, and the task."""

    task: str
    question: str
    answer: str


def all_questions(scene: Scene, rng: Generator) -> dict[str, list[TaskQuestion]]:
    """Return every question that a scene allows, by task, without empty tasks.

    `rng` only chooses the absent objects in questions.
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
    """Draw one question of each task that the scene allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    questions = all_questions(scene, rng)
    return [evenly(questions[task], rng) for task in TASKS if task in questions]


def film_questions(film: Film, rng: Generator) -> list[TaskQuestion]:
    """Return every question that a film allows. `rng` only chooses the absent objects in questions."""
    things = [shown for shown in film.shown if isinstance(shown.what, Thing)]
    texts = [shown for shown in film.shown if isinstance(shown.what, Lettering)]
    return [
        *_appearance(things),
        *_brief(things, len(film.frames)),
        *_ever({shown.what.name for shown in things}, rng),
        *(TaskQuestion("film text", "What does the text say?", shown.what.name) for shown in texts),
    ]


def one_per_film_task(film: Film, split: str, index: int) -> list[TaskQuestion]:
    """Draw one question of each task that the film allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    groups = by_task(film_questions(film, rng))
    return [pick(rng, questions) for questions in groups.values()]


def by_task(questions: Iterable[TaskQuestion]) -> dict[str, list[TaskQuestion]]:
    """Group questions by task, in the order of each task's first question."""
    groups: dict[str, list[TaskQuestion]] = {}
    for question in questions:
        groups.setdefault(question.task, []).append(question)
    return groups


def evenly(questions: list[TaskQuestion], rng: Generator) -> TaskQuestion:
    """Draw an answer, then a question with that answer, so that all answers are equally likely."""
    answers = {question.answer for question in questions}
    answer = pick(rng, sorted(answers))
    return pick(rng, [question for question in questions if question.answer == answer])


# About a scene.


def _objects(scene: Scene) -> Iterator[TaskQuestion]:
    """Yield questions about colour, shape and quadrant of uniquely named things, and about counts."""
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
    """True if no other thing has this thing's name."""
    names = [other.name for other in scene.things]
    return names.count(thing.name) == 1


def _existence(scene: Scene, rng: Generator) -> Iterator[TaskQuestion]:
    """Yield a question for each thing present, and for as many absent ones, mostly of shapes and colours present."""
    present = {thing.name for thing in scene.things}
    absent: set[str] = set()
    while len(absent) < len(present):
        near: set[str] = _recombine(present) - present - absent if rng.random() < 0.75 else set()
        candidates = near or NAMES - present - absent
        absent.add(pick(rng, sorted(candidates)))
    for name in sorted(present | absent):
        yield _yes_or_no("existence", f"Is there {_with_article(name)}?", name in present)


def _recombine(names: set[str]) -> set[str]:
    """Combine every colour with every shape in the names: "red star", "blue ring" -> four names."""
    pairs = [name.split() for name in names]
    return {f"{colour} {shape}" for colour, _ in pairs for _, shape in pairs}


def _yes_or_no(task: str, question: str, answer: bool) -> TaskQuestion:
    return TaskQuestion(task, question, ("no", "yes")[answer])


def _with_article(name: str) -> str:
    """Add the article: "a red star", "an orange star"."""
    if name[0] in "aeiou":
        return f"an {name}"
    return f"a {name}"


def _absent(scene: Scene, rng: Generator) -> Iterator[TaskQuestion]:
    """Yield a count question with the answer 0, in a quarter of the sketches with things."""
    if not scene.sketched:
        return
    shapes = {thing.shape for thing in scene.things}
    colours = {thing.colour for thing in scene.things}
    missing = [_plural(shape) for shape in SHAPES if shape not in shapes]
    missing += [f"{colour} objects" for colour in COLOURS if colour not in colours]
    if scene.things and missing and rng.random() < 0.25:
        yield _count(pick(rng, missing), 0)


def _order(scene: Scene) -> Iterator[TaskQuestion]:
    """Yield questions for lists of all things along an axis, if all are at least `MARGIN` apart."""
    for axis, direction in enumerate(("left to right", "top to bottom")):
        line = sorted(scene.things, key=lambda thing: thing.centre[axis])
        gaps = [second.centre[axis] - first.centre[axis] for first, second in pairwise(line)]
        if 2 <= len(line) <= 5 and min(gaps) >= MARGIN:
            names = ", ".join(thing.name for thing in line)
            yield TaskQuestion(f"list {direction}", f"List the objects from {direction}.", names)


def relation_questions(scene: Scene) -> Iterator[TaskQuestion]:
    """Yield questions about the thing just beside another one, if there is exactly one."""
    for thing in scene.things:
        for side, near in zip(SIDES, neighbours(scene, thing), strict=True):
            if len(near) == 1 and _is_alone(thing, scene):
                yield TaskQuestion("relation", f"What is just {side} the {thing.name}?", near[0].name)


def neighbours(scene: Scene, thing: Thing) -> list[tuple[Thing, ...]]:
    """Return the things close to a thing on each side, in the order of `SIDES`: none, one, or several.

    Several means that the answer is ambiguous.
    """
    others = [other for other in scene.things if other is not thing]
    sides = []
    for axis, sign in SIDES.values():
        near = tuple(other for other in others if _beside(thing, other, axis, sign, reach=1))
        about = tuple(other for other in others if _beside(thing, other, axis, sign, reach=2))
        if about and not len(near) == len(about) == 1:
            near = (*about, *about)  # ambiguous, also if a single thing is slightly too far away: make it several
        sides.append(near)
    return sides


def _beside(thing: Thing, other: Thing, axis: int, sign: int, reach: float) -> bool:
    """True if `other` is on that side of `thing`, within `reach` times the limits for being just beside it."""
    size = (thing.size + other.size) / 2
    ahead = sign * (other.centre[axis] - thing.centre[axis])
    aside = abs(other.centre[1 - axis] - thing.centre[1 - axis])
    near = max(BESIDE, 0.6 * size - 14)
    straight = max(ASIDE, 0.3 * size - 5)
    return ahead > 0 and ahead - size <= reach * near and aside <= reach * straight


def _text(scene: Scene) -> Iterator[TaskQuestion]:
    """Yield questions about the text, if there is exactly one."""
    if len(scene.texts) != 1:
        return
    (text,) = scene.texts
    yield TaskQuestion("read text", "What does the text say?", text.characters)
    for ordinal, character in zip(("first", "second", "third", "fourth", "fifth"), text.characters, strict=False):
        yield TaskQuestion("character", f"What is the {ordinal} character?", character)
    if where := _quadrant(scene, text.x, text.y):
        yield TaskQuestion("text quadrant", "Where is the text?", where)


def _quadrant(scene: Scene, x: float, y: float) -> str | None:
    """Return the name of a quadrant; None within 6 % of the side from a middle line."""
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
    """Yield questions about the first and last thing and the order of all, if no two appear at once."""
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
    """Yield a question about the thing that shows briefly, if all others show in at least half of the frames."""
    short = [shown for shown in things if shown.frames * BRIEF <= frames]
    long = [shown for shown in things if shown.frames * 2 >= frames]
    if len(short) == 1 and len(long) == len(things) - 1:
        yield TaskQuestion("brief", "Which object is seen only briefly?", short[0].what.name)


def _ever(present: set[str], rng: Generator) -> Iterator[TaskQuestion]:
    """Yield a question for each thing that shows, and for up to as many others of the same colours and shapes."""
    absent = sorted(_recombine(present) - present)
    asked = absent[: len(present)] if rng.random() < 0.5 else absent[-len(present) :]
    for name in (*sorted(present), *asked):
        yield _yes_or_no("ever", f"Does {_with_article(name)} appear?", name in present)
