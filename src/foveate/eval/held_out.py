"""The embedded tasks: questions about held-out pictures that are drawn from a seed."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from foveate.embedded import FILM_TASKS, TASKS
from foveate.embedded.films import film
from foveate.embedded.questions import one_per_film_task, one_per_task
from foveate.embedded.scenes import Scene, scene, sketch
from foveate.errors import SettingError, UnknownNameError
from foveate.eval.asked import Asked
from foveate.plain.spelling import nearest
from foveate.video import Clip

SPLIT = "held-out"
APART = 1_000_000  # distance between the first picture numbers of two seeds
MOST_SEED = 2000


def check_tasks(names: Sequence[str], known: Sequence[str] = TASKS) -> tuple[str, ...]:
    """Return the named tasks in their usual order, or all tasks if none is named.

    Args:
        names: Names of tasks.
        known: All tasks, about pictures or about films.

    Raises:
        UnknownNameError: If a task is unknown.
    """
    if unknown := sorted(set(names) - set(known)):
        raise UnknownNameError(
            f"No embedded task {unknown[0]!r}.{nearest(unknown[0], known)} There are: {', '.join(known)}. "
            "Run benchmarks with lmms-eval: docs/guides/benchmarks.md."
        )
    return tuple(task for task in known if task in names or not names)


def questions(tasks: Sequence[str], count: int, seeds: Sequence[int] = (0,)) -> list[Asked]:
    """Return questions about pictures of several seeds: for each picture, one per task that it allows.

    Args:
        tasks: Names in `TASKS`, or in `FILM_TASKS`.
        count: Number of questions, split evenly over the seeds. Few pictures allow a list or a relation, so these tasks
            get fewer.
        seeds: Seeds that select the pictures. No two seeds share a picture, and the model was trained on none of them.

    Raises:
        SettingError: If there are fewer questions than seeds, or a seed is out of range or repeated.
    """
    if not seeds or len(set(seeds)) < len(seeds) or not set(seeds) <= set(range(MOST_SEED)):
        raise SettingError(f"seeds must be different numbers between 0 and {MOST_SEED - 1}; got {list(seeds)}.")
    if count < len(seeds):
        raise SettingError(f"Ask at least one question per seed; got {count} for {len(seeds)} seeds.")
    each, rest = divmod(count, len(seeds))
    chosen: list[Asked] = []
    for place, seed in enumerate(seeds):
        chosen += _questions(tasks, each + (place < rest), seed)
    return chosen


def _questions(tasks: Sequence[str], count: int, seed: int) -> list[Asked]:
    """Return the first `count` questions about a seed's pictures."""
    chosen: list[Asked] = []
    picture = seed * APART
    about_films = bool(set(tasks) & set(FILM_TASKS))
    while len(chosen) < count:
        if about_films:
            drawn = one_per_film_task(film(SPLIT, picture), SPLIT, picture)
        else:
            drawn = one_per_task(_picture(picture), SPLIT, picture)
        media = partial(picture_or_clip, picture, about_films)
        for question in drawn:
            if question.task in tasks:
                key = f"{picture}/{question.task}"
                chosen.append(Asked(key, picture, question.task, question.question, media, (question.answer,)))
        picture += 1
    return chosen[:count]


def picture_or_clip(number: int, is_film: bool = False) -> Image.Image | Clip:
    """Draw picture or film number `number` of the held-out split."""
    if is_film:
        frames = np.stack([frame.image for frame in film(SPLIT, number).frames])
        seconds = tuple(map(float, range(len(frames))))
        return Clip(Path(f"film-{number}"), frames, seconds, start=0, end=len(frames), rate=1)
    return Image.fromarray(_picture(number).image)


def _picture(number: int) -> Scene:
    """Return the scene of picture number `number`. Odd numbers are sketches."""
    if number % 2:
        return sketch(SPLIT, number)
    return scene(SPLIT, number)
