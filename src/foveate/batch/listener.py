"""What a run tells while it goes on."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

__all__ = ["Listener"]


class Listener:
    """Hears what a run tells, and may stop it."""

    def note(self, text: str) -> None:
        """Hear a sentence."""

    def answering(self, left: int, done: int) -> AbstractContextManager[Callable[[int], object]]:
        """Hear that answering begins; it ends with the context, which gives what is called with rows that are done.

        Args:
            left: Rows to do.
            done: Rows that were done before.
        """
        return nullcontext(lambda count: None)

    def stopped(self) -> bool:
        """Whether the run shall end after the row in hand."""
        return False
