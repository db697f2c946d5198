"""What a run tells while it goes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], object]
"""Called with the number of rows that were added."""


def unheard(rows: int) -> None:
    """Hear that rows were added, and do nothing."""


class Listener:
    """Hears what a run tells, and does nothing; a command shows it on the screen, and lets signals end the run."""

    def note(self, text: str) -> None:
        """Hear a sentence."""

    def stage(self, doing: str, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:
        """Hear that a stage of so many rows begins; it ends with the context.

        Args:
            doing: What is done, in a few words.
            total: How many rows there will be; None where that is not known.
            done: How many there are from earlier runs.

        Returns:
            A context manager that gives what is called with the number of rows that were added.
        """
        return nullcontext(unheard)

    def stopped(self) -> bool:
        """Whether the run shall end behind what is in hand."""
        return False
