"""The embedded tasks: held-out pictures, drawn from a seed, and the questions that are asked about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.embedded.questions import TASKS, Question, one_per_task
from foveate.embedded.scenes import scene
from foveate.errors import SettingError, UnknownNameError

__all__ = ["APART", "SPLIT", "PictureQuestion", "check_tasks", "questions"]

SPLIT = "held-out"
APART = 1_000_000  # pictures between one seed's first and the next one's
MOST_SEED = 2000


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A question about picture number `picture` of the held-out split."""

    picture: int
    question: Question

    @property
    def key(self) -> str:
        """A name that no other question has."""
        return f"{self.picture}/{self.question.task}"


def check_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """The tasks named, in their usual order; all for none.

    Raises:
        UnknownNameError: If there is no such task.
    """
    if unknown := sorted(set(names) - set(TASKS)):
        raise UnknownNameError(f"No embedded task {unknown[0]!r}. There are: {', '.join(TASKS)}.")
    return tuple(task for task in TASKS if task in names or not names)


def questions(tasks: Sequence[str], count: int, seed: int = 0) -> list[PictureQuestion]:
    """The first `count` questions of a seed's pictures, one of every task that a picture allows.

    Args:
        tasks: Names in `TASKS`.
        count: How many in all. Few pictures allow a list or a relation, so these tasks get fewer.
        seed: Which pictures; no two seeds share one, and none was ever trained on.

    Raises:
        SettingError: If the count or the seed leaves its range.
    """
    if count < 1 or not 0 <= seed < MOST_SEED:
        raise SettingError(f"Ask one question or more, with a seed in 0 to {MOST_SEED - 1}; got {count} and {seed}.")
    chosen: list[PictureQuestion] = []
    picture = seed * APART
    while len(chosen) < count:
        drawn = one_per_task(scene(SPLIT, picture), SPLIT, picture)
        chosen += [PictureQuestion(picture, question) for question in drawn if question.task in tasks]
        picture += 1
    return chosen[:count]
