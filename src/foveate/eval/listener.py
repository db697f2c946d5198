"""What a run tells while it goes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

__all__ = ["Advance", "Listener", "unheard"]

Advance = Callable[[int], object]
"""Called with the number of answers that were added."""


def unheard(answers: int) -> None:
    """Hear that answers were added, and do nothing."""


class Listener:
    """Hears what a run tells, and does nothing; a command shows it on the screen."""

    def note(self, text: str) -> None:
        """Hear a sentence."""

    def stage(self, doing: str, total: int | None) -> AbstractContextManager[Advance]:
        """Hear that a stage of so many answers begins; it ends with the context.

        Args:
            doing: What is done, in a few words.
            total: How many answers there will be; None where that is not known.

        Returns:
            A context manager that gives what is called with the number of answers that were added.
        """
        return nullcontext(unheard)
