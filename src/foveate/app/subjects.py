"""Pictures and videos to ask about: uploads, and generated examples."""

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
from foveate.errors import FoveateError, InputError
from foveate.plain.files import is_video
from foveate.video import Clip

SIDE = 1344
"""The longest side of a picture, in pixels; larger ones are scaled down."""
FRAMES, MOST_FRAMES = 8, 32
"""Frames of a video: by default, and at most."""
CONTROL = "Frames of the video"
"""The label of the slider for them."""
HALF = "half the frames"
"""The name of a control: the full model on every other frame of a video."""
RATE = 2.0
"""Frames a second of the generated video."""
DRAWN = ((scene, 5), (scene, 2), (scene, 7), (sketch, 11), (sketch, 20), (sketch, 22))
"""The examples: a generator and its number. The first is the picture that ships."""
ORDER = (
    *("read text", "count", "colour", "list left to right", "quadrant", "relation", "existence", "character"),
    *FILM_TASKS,
)
"""Tasks in the order in which their questions are suggested."""
MODULES = {"read": "foveate.video", "read_upload": "foveate.app.subjects", "examples": "foveate.app.subjects"}
"""The modules from which a program imports these functions."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A picture or video to ask about.

    Attributes:
        medium: The picture or clip that the model gets.
        source: A Python expression for it: a path, or a call of a function in `MODULES`.
        notes: What the visitor should know, such as that it was scaled down.
        questions: Suggested questions with their right answers; empty if these are not known.
    """

    medium: Picture | Clip
    source: str
    notes: tuple[str, ...] = ()
    questions: dict[str, str] = field(default_factory=dict)

    @property
    def pictures(self) -> list[Image.Image]:
        """The picture, or the frames of the video."""
        if isinstance(self.medium, Clip):
            return self.medium.images()
        return [self.medium.image]

    @property
    def noun(self) -> str:
        """ "picture" or "video"."""
        return "video" if isinstance(self.medium, Clip) else "picture"

    def halved(self) -> Clip:
        """Every other frame of the video.

        Raises:
            InputError: If it is a picture, or has one frame.
        """
        if not isinstance(self.medium, Clip) or len(self.medium) < 2:
            raise InputError("Only a video has frames to leave out. Pick methods for a picture.")
        return self.medium.thinned(len(self.medium) // 2)


def read_upload(path: str | Path, frames: int = FRAMES) -> Subject:
    """Read an upload: at most `frames` frames of a video; a picture is scaled down to `SIDE` pixels.

    Raises:
        InputError: If it is too large, damaged, or neither a picture nor a video.
        SettingError: If so many frames do not fit into memory.
        UnsupportedError: If it is a video and PyAV is missing.
    """
    path = Path(path)
    folder = f"{path.parent}{os.sep}"  # a folder of the server, which no visitor should see
    try:
        (medium,) = read_media(path, frames=frames if is_video(path) else None)
    except FoveateError as error:
        raise type(error)(str(error).replace(folder, "")) from error
    notes = []
    if medium.note:
        notes = [medium.note.replace(folder, "")]
    medium = dataclasses.replace(medium, path=Path(path.name))
    if isinstance(medium, Clip):
        notes.insert(0, f"{path.name}: {len(medium)} frames are read. “{CONTROL}” sets how many.")
        return Subject(medium, f"read({path.name!r}, frames={frames})", tuple(notes))
    width, height = medium.image.size
    if max(width, height) <= SIDE:
        return Subject(medium, repr(path.name), tuple(notes))
    smaller = medium.image.copy()
    smaller.thumbnail((SIDE, SIDE))
    notes.append(f"{path.name} has {width} x {height} pixels; the model sees {smaller.width} x {smaller.height}.")
    return Subject(dataclasses.replace(medium, image=smaller), f"read_upload({path.name!r}).medium", tuple(notes))


@cache
def examples() -> tuple[Subject, ...]:
    """The generated pictures and the video, in the order of the page."""
    subjects = []
    for place, (draw, number) in enumerate(DRAWN):
        drawn = draw("demo", number)
        picture = Picture(None, Image.fromarray(drawn.image))
        subjects.append(_example(place, picture, one_per_task(drawn, "demo", number)))
    moving = film("demo", 0)
    frames = np.stack([frame.image for frame in moving.frames])
    seconds = tuple(place / RATE for place in range(len(frames)))
    clip = Clip(Path("generated video"), frames, seconds, 0.0, len(frames) / RATE, RATE)
    return (*subjects, _example(len(subjects), clip, one_per_film_task(moving, "demo", 0)))


def _example(place: int, medium: Picture | Clip, asked: list[TaskQuestion]) -> Subject:
    """An example with up to four questions, chosen by `ORDER`."""
    fitting = [question for question in asked if question.task in ORDER]
    fitting.sort(key=lambda question: ORDER.index(question.task))
    questions = {question.question: question.answer for question in fitting[:4]}
    return Subject(medium, f"examples()[{place}].medium", questions=questions)
