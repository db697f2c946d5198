"""The embedded tasks: held-out pictures, drawn from a seed, and the questions that are asked about them."""

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
APART = 1_000_000  # pictures between one seed's first and the next one's
MOST_SEED = 2000


def check_tasks(names: Sequence[str], known: Sequence[str] = TASKS) -> tuple[str, ...]:
    """The tasks named, in their usual order; all for none.

    Args:
        names: Of tasks.
        known: All there are: about pictures, or about films.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if unknown := sorted(set(names) - set(known)):
        raise UnknownNameError(
            f"No embedded task {unknown[0]!r}.{nearest(unknown[0], known)} There are: {', '.join(known)}. "
            "Benchmarks are run by lmms-eval: docs/guides/benchmarks.md."
        )
    return tuple(task for task in known if task in names or not names)


def questions(tasks: Sequence[str], count: int, seeds: Sequence[int] = (0,)) -> list[Asked]:
    """Questions about pictures of several seeds, one of every task that a picture allows.

    Args:
        tasks: Names in `TASKS`, or in `FILM_TASKS`.
        count: How many in all; every seed gets as many, but for a rest. Few pictures allow a list or a relation, so
            these tasks get fewer.
        seeds: Which pictures; no two seeds share one, and none was ever trained on.

    Raises:
        SettingError: If there are fewer questions than seeds, or a seed is out of range or there twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingError(f"Give one seed or more, each once; got {list(seeds)}.")
    for seed in seeds:
        if not 0 <= seed < MOST_SEED:
            raise SettingError(f"A seed lies in 0 to {MOST_SEED - 1}; got {seed}.")
    if count < len(seeds):
        raise SettingError(f"Ask one question or more of each seed; got {count} of {len(seeds)}.")
    each, rest = divmod(count, len(seeds))
    chosen: list[Asked] = []
    for place, seed in enumerate(seeds):
        chosen += _questions(tasks, each + (place < rest), seed)
    return chosen


def _questions(tasks: Sequence[str], count: int, seed: int) -> list[Asked]:
    """The first questions of a seed's pictures."""
    chosen: list[Asked] = []
    picture = seed * APART
    about_films = bool(set(tasks) & set(FILM_TASKS))
    while len(chosen) < count:
        if about_films:
            drawn = one_per_film_task(film(SPLIT, picture), SPLIT, picture)
        else:
            drawn = one_per_task(_picture(picture), SPLIT, picture)
        media = partial(shown, picture, about_films)
        for question in drawn:
            if question.task in tasks:
                key = f"{picture}/{question.task}"
                chosen.append(Asked(key, picture, question.task, question.question, media, (question.answer,), seed))
        picture += 1
    return chosen[:count]


def shown(number: int, is_film: bool = False) -> Image.Image | Clip:
    """Picture number `number` of the held-out split, or that film."""
    if is_film:
        frames = np.stack([frame.image for frame in film(SPLIT, number).frames])
        seconds = tuple(map(float, range(len(frames))))
        return Clip(Path(f"film-{number}"), frames, seconds, start=0, end=len(frames), rate=1)
    return Image.fromarray(_picture(number).image)


def _picture(number: int) -> Scene:
    """What picture number `number` shows: every other one is a sketch."""
    if number % 2:
        return sketch(SPLIT, number)
    return scene(SPLIT, number)
