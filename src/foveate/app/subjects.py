"""What is asked about: uploads, and pictures and films of the embedded model's generator."""

import dataclasses
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.ask.media import Picture, read_media
from foveate.embedded import FILM_TASKS
from foveate.embedded.films import film
from foveate.embedded.questions import TaskQuestion, one_per_film_task, one_per_task
from foveate.embedded.scenes import scene, sketch
from foveate.errors import FoveateError
from foveate.plain.files import is_video
from foveate.video import Clip

SIDE = 1344
"""Longest side of a picture that the model sees, in pixels."""
FRAMES, MOST_FRAMES = 8, 32
"""Of a film: those read where nobody says how many, and the most that are read and shown."""
CONTROL = "Frames of the film"
"""What the page calls the slider for them."""
RATE = 2.0
"""Frames a second of a generated film."""
DRAWN = ((scene, 5), (scene, 2), (scene, 7), (sketch, 11), (sketch, 20), (sketch, 22))
"""Examples; the first is the picture that ships."""
ORDER = (
    *("read text", "count", "colour", "list left to right", "quadrant", "relation", "existence", "character"),
    *FILM_TASKS,
)
"""Tasks, those first of which a question is proposed."""
MODULES = {"read": "foveate.video", "opened": "foveate.app.subjects", "examples": "foveate.app.subjects"}
"""Where a program that asks the same has functions from."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A picture or film.

    Attributes:
        medium: It, as a model is shown it.
        source: An expression of Python that gives it: a path, or a call of a function that `MODULES` has.
        notes: What the user should know, such as that it was scaled down.
        questions: Questions that fit it, each with its right answer; none where that is not known.
    """

    medium: Picture | Clip
    source: str
    notes: tuple[str, ...] = ()
    questions: dict[str, str] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Image.Image]:
        """It as one picture, or its frames."""
        if isinstance(self.medium, Clip):
            return self.medium.images()
        return [self.medium.image]

    @property
    def noun(self) -> str:
        """What it is: "picture" or "film"."""
        return "film" if isinstance(self.medium, Clip) else "picture"


def opened(path: str | Path, frames: int = FRAMES) -> Subject:
    """A picture or film of the user: of a film at most so many frames, a picture no larger than `SIDE`.

    Raises:
        InputError: If it is too large, damaged, or neither picture nor film.
        SettingError: If so many frames do not fit into memory.
        UnsupportedError: If it is a film and PyAV is missing.
    """
    path = Path(path)
    folder = f"{path.parent}{os.sep}"  # of the server, and nobody's business
    try:
        (medium,) = read_media(path, frames=frames if is_video(path) else None)
    except FoveateError as error:
        raise type(error)(str(error).replace(folder, "")) from error
    notes = []
    if medium.note:
        notes = [medium.note.replace(folder, "")]
    medium = dataclasses.replace(medium, path=Path(path.name))
    if isinstance(medium, Clip):
        notes.insert(0, f"Of the film {path.name}, {len(medium)} frames are read. “{CONTROL}” sets how many.")
        return Subject(medium, f"read({path.name!r}, frames={frames})", tuple(notes))
    width, height = medium.image.size
    if max(width, height) <= SIDE:
        return Subject(medium, repr(path.name), tuple(notes))
    smaller = medium.image.copy()
    smaller.thumbnail((SIDE, SIDE))
    notes.append(f"{path.name} has {width} x {height} pixels; the model sees {smaller.width} x {smaller.height}.")
    return Subject(dataclasses.replace(medium, image=smaller), f"opened({path.name!r}).medium", tuple(notes))


@cache
def examples() -> tuple[Subject, ...]:
    """Generated pictures and a film, in the order in which the page shows them."""
    made = []
    for place, (draw, number) in enumerate(DRAWN):
        drawn = draw("demo", number)
        picture = Picture(None, Image.fromarray(drawn.image))
        made.append(_example(place, picture, one_per_task(drawn, "demo", number)))
    moving = film("demo", 0)
    frames = np.stack([frame.image for frame in moving.frames])
    seconds = tuple(place / RATE for place in range(len(frames)))
    clip = Clip(Path("generated film"), frames, seconds, 0.0, len(frames) / RATE, RATE)
    return (*made, _example(len(made), clip, one_per_film_task(moving, "demo", 0)))


def _example(place: int, medium: Picture | Clip, asked: list[TaskQuestion]) -> Subject:
    """An example, with up to four questions about it: those whose tasks come first in `ORDER`."""
    fitting = [question for question in asked if question.task in ORDER]
    fitting.sort(key=lambda question: ORDER.index(question.task))
    questions = {question.question: question.answer for question in fitting[:4]}
    return Subject(medium, f"examples()[{place}].medium", questions=questions)
