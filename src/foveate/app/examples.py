"""Pictures to begin with: the one that ships, and some that the embedded model's generator draws."""

from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from foveate import embedded
from foveate.app.subject import Subject
from foveate.ask.pictures import Picture, load_picture
from foveate.embedded.films import film, one_per_film_task
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import Scene, scene
from foveate.embedded.sketches import sketch
from foveate.video import Clip

__all__ = ["examples", "generated"]

SCENES, SKETCHES, FILMS = (2, 7), (11, 20, 22), (0,)
QUESTIONS = 5
"""Most questions that an example proposes."""
RATE = 2.0
"""Frames a second of a film."""

ORDER = ("read text", "count", "colour", "list left to right", "quadrant", "relation", "existence", "character")


@cache
def examples() -> tuple[Subject, ...]:
    """The examples, in the order in which the page shows them."""
    drawn = [_drawn("scene", number) for number in SCENES] + [_drawn("sketch", number) for number in SKETCHES]
    return (_shipped(), *drawn, *(_film(number) for number in FILMS))


def generated(count: int) -> list[Picture]:
    """So many pictures of the generator, none of which training ever saw: scenes and sketches by turns."""
    pictures = []
    for number in range(count):
        one = (scene, sketch)[number % 2]("held-out", number)
        pictures.append(Picture(None, Image.fromarray(one.image)))
    return pictures


def _shipped() -> Subject:
    source = "from foveate import embedded\npicture = embedded.picture()"
    picture = load_picture(embedded.picture())
    with Image.open(embedded.picture()) as shown:
        number = int(shown.info["index"])
    questions = _questions(scene("demo", number), number)
    return Subject("example: shipped", "the demo's picture", picture, source, questions=questions)


def _drawn(kind: str, number: int) -> Subject:
    one = {"scene": scene, "sketch": sketch}[kind]("demo", number)
    source = (
        f"from PIL import Image\nfrom foveate.embedded.{_module(kind)} import {kind}\n"
        f'picture = Image.fromarray({kind}("demo", {number}).image)'
    )
    picture = Picture(None, Image.fromarray(one.image))
    name = f"a generated {kind}"
    return Subject(f"example: {kind} {number}", name, picture, source, questions=_questions(one, number))


def _module(kind: str) -> str:
    return {"scene": "scenes", "sketch": "sketches"}[kind]


def _questions(one: Scene, number: int) -> tuple[tuple[str, str], ...]:
    """Some questions about a picture with their right answers, those of different tasks first."""
    asked = {question.task: question for question in one_per_task(one, "demo", number)}
    chosen = [asked[task] for task in ORDER if task in asked][:QUESTIONS]
    return tuple((question.question, question.answer) for question in chosen)


def _film(number: int) -> Subject:
    one = film("demo", number)
    frames = np.stack([frame.image for frame in one.frames])
    seconds = tuple(place / RATE for place in range(len(frames)))
    clip = Clip(Path("generated film"), frames, seconds, 0.0, len(frames) / RATE, RATE)
    asked = one_per_film_task(one, "demo", number)
    questions = tuple((question.question, question.answer) for question in asked[:QUESTIONS])
    source = (
        "from pathlib import Path\nimport numpy as np\n"
        "from foveate.embedded.films import film\nfrom foveate.video import Clip\n"
        f'frames = np.stack([frame.image for frame in film("demo", {number}).frames])\n'
        f"seconds = tuple(place / {RATE} for place in range(len(frames)))\n"
        f'picture = Clip(Path("generated film"), frames, seconds, 0.0, len(frames) / {RATE}, {RATE})'
    )
    return Subject(f"example: film {number}", "a generated film", clip, source, questions=questions)
