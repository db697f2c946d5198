"""`Listener`: receives the progress of a run."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], object]
"""Called with the number of rows added."""


def unheard(rows: int) -> None:
    """Ignore that rows were added."""


class Listener:
    """Receives the progress of a run. This one ignores it; a command's shows it, and lets signals stop the run."""

    def note(self, text: str) -> None:
        """Receive a note for the user."""

    def stage(self, doing: str, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:
        """Receive the start of a stage, which ends with the context.

        Args:
            doing: What the stage does, in a few words.
            total: Number of rows to come; None if unknown.
            done: Number of rows from earlier runs.

        Returns:
            A context manager that yields a function to call with the number of rows added.
        """
        return nullcontext(unheard)

    def stopped(self) -> bool:
        """Return whether the run should end after the rows in progress."""
        return False
