"""A conversation about what was looked at."""

from collections.abc import Callable, Sequence
from typing import Any, Unpack

from foveate.ask.answer import Answer
from foveate.ask.generation import Options
from foveate.ask.stream import Stream

__all__ = ["Talk"]


class Talk:
    """A conversation about what was looked at: each question comes behind the questions and answers before it.

        talk = prefix.talk()
        talk.ask("How many cars are there?"), talk.ask("Which of them is red?")

    An answer is the one that `VLM.ask` gives to the same `messages`. Earlier texts run again with each question, and
    the pictures do not. Several conversations about one prefix know nothing of one another.

    Args:
        ask: Asks with these texts, choices, streaming or not, and settings.
    """

    def __init__(self, ask: Callable[..., Any]) -> None:
        self._ask = ask
        self._texts: list[str] = []
        self._open: Stream | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """What was said: a question, its answer, the next question, and so on.

        Raises:
            SessionError: If an answer that is streamed has not ended yet.
        """
        if self._open is not None:
            self._texts.append(self._open.answer.text)
            self._open = None
        return tuple(self._texts)

    def ask(
        self, question: str, *, choices: Sequence[str] = (), stream: bool = False, **generation: Unpack[Options]
    ) -> Any:
        """Ask the next question; see `Prefix.ask`. One that fails leaves the conversation as it was."""
        answer = self._ask((*self.texts, question), choices, stream, generation)
        self._texts.append(question)
        if isinstance(answer, Answer):
            self._texts.append(answer.text)
        else:
            self._open = answer
        return answer
