"""`Stream`: an answer's text in pieces, while the model generates it."""

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
"""Seconds that a garbage-collected stream waits for its thread.

The wait is limited because the thread may need the model's lock, which the collecting thread may hold.
"""


class _Work(threading.Thread):
    """The thread that generates the answer. It holds no reference to the stream, so an unused stream is collected."""

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
        except BaseException as error:  # raised again in the thread that reads the pieces
            self.error = error
        finally:
            self._streamer.end()
            del self._run  # frees the prompt
            atexit.unregister(self.close)

    def close(self, wait: float | None = None) -> None:
        """End the answer after the next token, and wait up to `wait` seconds for that. None waits without a limit."""
        self.closed.set()
        if threading.current_thread() is not self:  # the garbage collector may run this in the thread itself
            self.join(wait)


class Stream(Iterator[str]):
    """An answer's text in pieces. Iterate over it, then read `answer`.

        stream = vlm.ask("cat.jpg", "Describe it.", stream=True)
        for piece in stream:
            print(piece, end="", flush=True)
        stream.answer.retention

    The model runs in a separate thread. The answer ends after the next token when the stream is closed, its context
    exits, it is garbage-collected, or the program ends.

    Args:
        run: Generates the answer, given a streamer and a stopping criterion of transformers.
        tokenizer: The model's tokenizer.
        stop: Texts that end the answer. No piece contains any of them.
    """

    def __init__(self, run: Run, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._stop = stop
        self._text = self._given = ""
        self._over = False
        self._process = os.getpid()
        self._work = _Work(run, self._streamer)
        atexit.register(self._work.close)  # a thread inside torch at interpreter exit would abort the process
        self._work.start()
        collected = weakref.finalize(self, self._work.close, WAIT)
        collected.atexit = False

    def __getstate__(self) -> NoReturn:
        raise SessionError("A stream cannot be pickled: read it in the model's process, and send its answer instead.")

    def __next__(self) -> str:
        if os.getpid() != self._process:
            raise SessionError("This stream belongs to another process: read it where the model runs.")
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
        """Return the text that is certain so far: up to a stop text, and without an end that may grow into one.

        With stop "END", "yes EN" -> "yes".
        """
        text = self._text
        held = 0
        for end in self._stop:
            text = text.partition(end)[0]
            held = max(held, *(size for size in range(len(end)) if text.endswith(end[:size])))
        return text[: len(text) - held].strip()

    @property
    def answer(self) -> Answer:
        """The whole answer.

        Raises:
            SessionError: If the answer is not finished. Read all pieces first.
            Exception: The error of the model's thread, if it failed.
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
