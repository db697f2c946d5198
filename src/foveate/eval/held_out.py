"""The embedded tasks: held-out pictures, drawn from a seed, and the questions that are asked about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from foveate.embedded import FILM_TASKS, TASKS
from foveate.embedded.films import film
from foveate.embedded.questions import Question, one_per_film_task, one_per_task
from foveate.embedded.scenes import Scene, scene, sketch
from foveate.errors import SettingError, UnknownNameError

__all__ = ["APART", "SPLIT", "PictureQuestion", "check_tasks", "questions"]

SPLIT = "held-out"
APART = 1_000_000  # pictures between one seed's first and the next one's
MOST_SEED = 2000


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A question about picture, or film, number `picture` of the held-out split."""

    picture: int
    question: Question

    @property
    def key(self) -> str:
        """A name that no other question has."""
        return f"{self.picture}/{self.question.task}"

    @property
    def task(self) -> str:
        """What kind of question it is."""
        return self.question.task

    @property
    def text(self) -> str:
        """What is asked."""
        return self.question.question

    def is_right(self, answer: str) -> bool:
        """Whether an answer is the true one."""
        return answer == self.question.answer

    def shown(self) -> list[Image.Image]:
        """The picture, or the frames of the film."""
        if self.question.task in FILM_TASKS:
            return [Image.fromarray(frame.image) for frame in film(SPLIT, self.picture).frames]
        return [Image.fromarray(_picture(self.picture).image)]

    @property
    def seed(self) -> int:
        """The seed that its picture belongs to."""
        return self.picture // APART


def check_tasks(names: Sequence[str], known: Sequence[str] = TASKS) -> tuple[str, ...]:
    """The tasks named, in their usual order; all for none.

    Args:
        names: Of tasks.
        known: All there are: about pictures, or about films.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if unknown := sorted(set(names) - set(known)):
        raise UnknownNameError(f"No embedded task {unknown[0]!r}. There are: {', '.join(known)}.")
    return tuple(task for task in known if task in names or not names)


def questions(tasks: Sequence[str], count: int, seeds: Sequence[int] = (0,)) -> list[PictureQuestion]:
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
    chosen: list[PictureQuestion] = []
    for place, seed in enumerate(seeds):
        chosen += _questions(tasks, each + (place < rest), seed)
    return chosen


def _questions(tasks: Sequence[str], count: int, seed: int) -> list[PictureQuestion]:
    """The first questions of a seed's pictures."""
    chosen: list[PictureQuestion] = []
    picture = seed * APART
    about_films = bool(set(tasks) & set(FILM_TASKS))
    while len(chosen) < count:
        if about_films:
            drawn = one_per_film_task(film(SPLIT, picture), SPLIT, picture)
        else:
            drawn = one_per_task(_picture(picture), SPLIT, picture)
        chosen += [PictureQuestion(picture, question) for question in drawn if question.task in tasks]
        picture += 1
    return chosen[:count]


def _picture(number: int) -> Scene:
    """What picture number `number` shows: every other one is a sketch."""
    if number % 2:
        return sketch(SPLIT, number)
    return scene(SPLIT, number)
