"""An answer that comes piece by piece."""

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from transformers import PreTrainedTokenizerBase, TextIteratorStreamer

from foveate.ask.answer import Answer
from foveate.errors import SessionError

Run = Callable[[Any, Any], Answer]
WAIT = 5.0
"""Seconds that collecting a stream waits for its thread, which may itself wait for the model that the collector has."""


class _Work(threading.Thread):
    """Makes an answer beside its reader, whom it does not hold: a stream that nobody has any more is collected."""

    def __init__(self, run: Run, streamer: TextIteratorStreamer) -> None:
        super().__init__(daemon=True)
        self._run = run
        self._streamer = streamer
        self.closed = threading.Event()
        self.answer: Answer | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.answer = self._run(
                self._streamer,
                lambda ids, scores, **_: torch.full((ids.shape[0],), self.closed.is_set(), device=ids.device),
            )
        except BaseException as error:  # raised where the pieces are read
            self.error = error
        finally:
            self._streamer.end()
            del self._run  # and the prompt with it
            atexit.unregister(self.close)

    def close(self, wait: float | None = None) -> None:
        """End the answer after the next token, and wait so many seconds for that; None: until then."""
        self.closed.set()
        if threading.current_thread() is not self:  # where Python collects what holds an abandoned stream
            self.join(wait)


class Stream(Iterator[str]):
    """The text of an answer as it is made: iterate over it, then read `answer`.

        stream = vlm.ask("cat.jpg", "Describe it.", stream=True)
        for piece in stream:
            print(piece, end="", flush=True)
        stream.answer.retention

    The model runs in a thread of its own. Closing the stream, leaving its context, or letting go of it ends the answer
    after the next token; so does the end of the program.

    Args:
        run: Makes the answer, given a streamer and a stopping criterion of transformers.
        tokenizer: The model's.
        stop: Texts that end the answer: no piece has any of them.
    """

    def __init__(self, run: Run, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop = stop
        self._text = self._given = ""
        self._over = False
        self._process = os.getpid()
        self._work = _Work(run, self._streamer)
        atexit.register(self._work.close)  # a thread in torch when the interpreter ends would abort the program
        self._work.start()
        collected = weakref.finalize(self, self._work.close, WAIT)
        collected.atexit = False

    def __getstate__(self) -> NoReturn:
        raise SessionError("A stream is not pickled: read it where the model runs, and hand on its answer.")

    def __next__(self) -> str:
        if os.getpid() != self._process:
            raise SessionError("This stream is another process's: read it where the model runs.")
        while not self._over:
            try:
                self._text += next(self._streamer)
                text = self._known_text()
            except StopIteration:
                self._over = True
                self._work.join()
                if self._work.error is not None:
                    raise self._work.error from None
                text = self.answer.text
            if text != self._given and text.startswith(self._given):
                piece = text.removeprefix(self._given)
                self._given = text
                return piece
        raise StopIteration

    def _known_text(self) -> str:
        """The beginning of the answer as far as it is known: without a stop, or what may become one."""
        text = self._text
        held = 0
        for end in self._stop:
            text = text.partition(end)[0]
            held = max(held, *(size for size in range(len(end)) if text.endswith(end[:size])))
        return text[: len(text) - held].strip()

    @property
    def failed(self) -> bool:
        """Whether it has ended in an error."""
        return self._work.error is not None

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            SessionError: If it is not finished: read all pieces first.
        """
        if self._work.is_alive() and not self._work.closed.is_set():
            raise SessionError("The answer is not finished: read all its pieces, or close the stream, first.")
        self._work.join()
        if self._work.error is not None:
            raise self._work.error
        assert self._work.answer is not None
        return self._work.answer

    def close(self) -> None:
        """End the answer after the next token, and wait for that."""
        self._work.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
