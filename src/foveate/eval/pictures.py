"""The embedded tasks: held-out pictures, drawn from a seed, and the questions that are asked about them."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveate.embedded.questions import TASKS, Question, one_per_task
from foveate.embedded.scenes import scene
from foveate.errors import SettingError, UnknownNameError

__all__ = ["Asked", "check_tasks", "questions"]

SPLIT = "held-out"
APART = 1_000_000  # pictures between one seed's first and the next one's
MOST_SEED = 2000


@dataclass(frozen=True, slots=True)
class Asked:
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


def questions(tasks: Sequence[str], count: int, seed: int = 0) -> list[Asked]:
    """About `count` questions, equally many a task and at most one of a task a picture; a function of its arguments.

    Args:
        tasks: Names in `TASKS`.
        count: Rounded up to a multiple of the tasks.
        seed: Which pictures; no two seeds share one, and none was ever trained on.

    Raises:
        SettingError: If the count or the seed leaves its range.
    """
    if count < 1 or not 0 <= seed < MOST_SEED:
        raise SettingError(f"Ask one question or more, with a seed in 0 to {MOST_SEED - 1}; got {count} and {seed}.")
    each = -(-count // len(tasks))
    missing = dict.fromkeys(tasks, each)
    found: list[Asked] = []
    picture = seed * APART
    while any(missing.values()):
        for question in one_per_task(scene(SPLIT, picture), SPLIT, picture):
            if missing.get(question.task):
                missing[question.task] -= 1
                found.append(Asked(picture, question))
        picture += 1
    return found
