"""Questions about a scene, each with its one right answer.

A question is asked only if its answer is unambiguous: what it names occurs once, and positions that
are compared differ by a visible margin.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from foveate.embedded import TASKS
from foveate.embedded.drawing import COLOURS, SHAPES
from foveate.embedded.scenes import Scene, Thing, rng_for

__all__ = [
    "SIDES",
    "TASKS",
    "TEXT_TASKS",
    "Question",
    "all_questions",
    "article",
    "ask",
    "neighbours",
    "one_per_task",
    "relations",
]

TEXT_TASKS = ("read text", "character", "text quadrant")

ORDINALS = ("first", "second", "third", "fourth", "fifth")
MOST_LISTED = 5
MARGIN = 14.0
"""Pixels, one patch: things nearer than this along an axis have no order that is asked for."""
BESIDE, ASIDE = 14.0, 9.0
"""Pixels: how wide the gap to what is just beside a thing may be, and how far the two centres may be out of line.
More beside large things, see `_beside`."""
SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Each side's axis and direction."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question, the answer a model should give word for word, and the task it belongs to."""

    task: str
    question: str
    answer: str


def all_questions(scene: Scene, rng: np.random.Generator) -> dict[str, list[Question]]:
    """Every question that this scene allows, by task; tasks without any are left out.

    `rng` only chooses which absent objects are asked for.
    """
    found: dict[str, list[Question]] = {}
    for question in (
        *_objects(scene),
        *_existence(scene, rng),
        *_relations(scene),
        *_order(scene),
        *_text(scene),
        *_absent(scene, rng),
    ):
        found.setdefault(question.task, []).append(question)
    return found


def ask(scene: Scene, rng: np.random.Generator, count: int, weights: Mapping[str, float]) -> list[Question]:
    """Draw up to `count` different questions, tasks by weight, answers of a task evenly."""
    found = all_questions(scene, rng)
    drawn: list[Question] = []
    while found and len(drawn) < count:
        tasks = list(found)
        weight = np.array([weights.get(task, 0.0) for task in tasks])
        if weight.sum() <= 0:
            break
        task = tasks[int(rng.choice(len(tasks), p=weight / weight.sum()))]
        question = _even(found[task], rng)
        drawn.append(question)
        found[task].remove(question)
        if not found[task]:
            del found[task]
    return drawn


def one_per_task(scene: Scene, split: str, index: int) -> list[Question]:
    """One question of each task that the scene allows; a function of (split, index)."""
    rng = rng_for(split, index, purpose=1)
    found = all_questions(scene, rng)
    return [_even(found[task], rng) for task in TASKS if task in found]


def _even(questions: list[Question], rng: np.random.Generator) -> Question:
    """Draw an answer first, then a question that has it."""
    answers = sorted({q.answer for q in questions})
    answer = answers[int(rng.integers(len(answers)))]
    matching = [q for q in questions if q.answer == answer]
    return matching[int(rng.integers(len(matching)))]


def _objects(scene: Scene) -> Iterator[Question]:
    shapes = [thing.shape for thing in scene.things]
    colours = [thing.colour for thing in scene.things]
    for thing in scene.things:
        if shapes.count(thing.shape) == 1:
            yield Question("colour", f"What colour is the {thing.shape}?", thing.colour)
        if colours.count(thing.colour) == 1:
            yield Question("shape", f"What shape is the {thing.colour} object?", thing.shape)
        where = _quadrant(scene, thing.x, thing.y)
        if where and _is_alone(thing, scene):
            yield Question("quadrant", f"Where is the {thing.name}?", where)
    yield Question("count", "How many objects are there?", str(len(shapes)))
    for shape in sorted(set(shapes)):
        yield Question("count", f"How many {_plural(shape)} are there?", str(shapes.count(shape)))
    for colour in sorted(set(colours)):
        yield Question("count", f"How many {colour} objects are there?", str(colours.count(colour)))


def _is_alone(one: Thing, scene: Scene) -> bool:
    """Whether its name tells this thing from all others."""
    return sum(thing.name == one.name for thing in scene.things) == 1


def _existence(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    present = {(thing.colour, thing.shape) for thing in scene.things}
    absent: set[tuple[str, str]] = set()
    for _ in sorted(present):  # three in four recombine a colour and a shape that are there
        if rng.random() < 0.75:
            near = {(a.colour, b.shape) for a in scene.things for b in scene.things} - present - absent
        else:
            near = set()
        choice = sorted(near or {(c, s) for c in COLOURS for s in SHAPES} - present - absent)
        absent.add(choice[int(rng.integers(len(choice)))])
    for colour, shape in sorted(present | absent):
        answer = "yes" if (colour, shape) in present else "no"
        yield Question("existence", f"Is there {article(colour)} {colour} {shape}?", answer)


def _absent(scene: Scene, rng: np.random.Generator) -> Iterator[Question]:
    """In one sketch of four with things, how many there are of a shape or a colour that is not there: none."""
    if not scene.sketched:
        return
    shapes = [_plural(shape) for shape in SHAPES if shape not in {thing.shape for thing in scene.things}]
    colours = [f"{name} objects" for name in COLOURS if name not in {thing.colour for thing in scene.things}]
    missing = shapes + colours
    if scene.things and missing and rng.random() < 0.25:
        yield Question("count", f"How many {missing[int(rng.integers(len(missing)))]} are there?", "0")


def _order(scene: Scene) -> Iterator[Question]:
    for direction, axis in (("left to right", 0), ("top to bottom", 1)):
        line = sorted(scene.things, key=lambda thing: thing.centre[axis])
        clear = all(b.centre[axis] - a.centre[axis] >= MARGIN for a, b in pairwise(line))
        if 2 <= len(line) <= MOST_LISTED and clear:
            names = ", ".join(thing.name for thing in line)
            yield Question(f"list {direction}", f"List the objects from {direction}.", names)


def _relations(scene: Scene) -> Iterator[Question]:
    for one in scene.things:
        for word, near in zip(SIDES, neighbours(scene, one), strict=True):
            if len(near) == 1 and _is_alone(one, scene):
                yield Question("relation", f"What is just {word} the {one.name}?", near[0].name)


def relations(scene: Scene) -> int:
    """How many relations can be asked for."""
    return sum(1 for _ in _relations(scene))


def neighbours(scene: Scene, one: Thing) -> list[tuple[Thing, ...]]:
    """What stands close to a thing on each side, in the order of `SIDES`: nothing, one thing, or several.

    Several where it is not clear which, if any, is just beside it.
    """
    found = []
    for axis, sign in SIDES.values():
        near, about = (
            tuple(other for other in scene.things if other is not one and _beside(one, other, axis, sign, reach))
            for reach in (1, 2)
        )
        found.append(near if len(near) == len(about) == 1 or not about else (*about, *about))
    return found


def _beside(one: Thing, other: Thing, axis: int, sign: int, reach: float) -> bool:
    """Whether `other` stands on that side of `one`, within `reach` times what counts as just beside it."""
    ahead = sign * (other.centre[axis] - one.centre[axis])
    size = (one.size + other.size) / 2
    out_of_line = abs(other.centre[1 - axis] - one.centre[1 - axis])
    near, straight = max(BESIDE, 0.6 * size - 14), max(ASIDE, 0.3 * size - 5)
    return ahead > 0 and ahead - size <= reach * near and out_of_line <= reach * straight


def _text(scene: Scene) -> Iterator[Question]:
    if len(scene.texts) != 1:
        return
    text = scene.texts[0]
    yield Question("read text", "What does the text say?", text.characters)
    for ordinal, character in zip(ORDINALS, text.characters, strict=False):
        yield Question("character", f"What is the {ordinal} character?", character)
    where = _quadrant(scene, text.x, text.y)
    if where:
        yield Question("text quadrant", "Where is the text?", where)


def _quadrant(scene: Scene, x: float, y: float) -> str | None:
    """Name of the quadrant, or None within 6 % of the side from a middle line."""
    middle, margin = scene.side / 2, 0.06 * scene.side
    if min(abs(x - middle), abs(y - middle)) < margin:
        return None
    return f"{'top' if y < middle else 'bottom'} {'left' if x < middle else 'right'}"


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def article(word: str) -> str:
    """What stands before a word: a or an."""
    return "an" if word[0] in "aeiou" else "a"
