"""Answers as they come: from what the model has kept of a picture where it can, else from the picture itself."""

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from foveate._spelling import written
from foveate.app.subject import Subject
from foveate.ask.answer import Answer
from foveate.ask.prefix import Prefix
from foveate.ask.stream import Stream
from foveate.ask.vlm import VLM
from foveate.errors import FoveateError, SessionError, SettingError, UnsupportedError
from foveate.video import Clip

__all__ = ["FULL", "Reply", "Shelf", "answer", "check_method"]

FULL = "full model"
Key = tuple[str, str, float | None]


@dataclass(frozen=True, slots=True)
class Reply:
    """What one method has said so far.

    Attributes:
        name: The method as it was written, or "full model".
        text: Its answer as far as it has come.
        answer: The whole answer; None until it is there.
        first: Seconds to the first piece of text, and `seconds` to the end; None until then.
        reused: Whether the picture was looked at before, for an earlier question.
        error: Why there is no answer; None where there is one.
    """

    name: str
    text: str = ""
    answer: Answer | None = None
    first: float | None = None
    seconds: float | None = None
    reused: bool = False
    error: str | None = None


class Shelf:
    """What models have kept of the pictures that they saw lately; the oldest go where it takes too many bytes.

    Args:
        most: Bytes that stay: of keys and values, and of the pictures that belong to them.
    """

    def __init__(self, most: int = 2**30) -> None:
        self.most = most
        self._prefixes: OrderedDict[Key, Prefix] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Key) -> Prefix | None:
        """What was kept; None where it was not, or has gone."""
        with self._lock:
            if key in self._prefixes:
                self._prefixes.move_to_end(key)
            return self._prefixes.get(key)

    def keep(self, key: Key, prefix: Prefix) -> None:
        """Keep this, and let the oldest go."""
        with self._lock:
            self._prefixes[key] = prefix
            while len(self._prefixes) > 1 and self.nbytes > self.most:
                self._prefixes.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(map(_size, self._prefixes.values()))


def _size(prefix: Prefix) -> int:
    """Bytes of a prefix with its pictures and films."""
    size = prefix.nbytes
    for medium in prefix.media:
        if isinstance(medium, Clip):
            size += medium.frames.nbytes
        else:
            size += 3 * medium.image.width * medium.image.height
    return size


def check_method(text: str) -> None:
    """Refuse a method that names a file: a page must not read the files of its machine.

    Raises:
        SettingError: If it does.
    """
    if any(part.is_file for part in written(text)):
        raise SettingError(f"{text!r} is no method that the page takes: write a name, settings or a chain.")


def answer(
    vlm: VLM,
    shelf: Shelf,
    subject: Subject,
    question: str,
    method: str | None = None,
    retention: float | None = None,
    **generation: Any,
) -> Iterator[Reply]:
    """Ask, and give the answer as far as it has come whenever there is more; the last one is whole.

    A second question about the same picture, method and budget goes on from what the model saw then (`VLM.look`),
    unless the method or the model needs the question first.

    Args:
        vlm: The model.
        shelf: Where it is kept what models saw.
        subject: What is asked about.
        question: In any words.
        method: What drops; None is the untouched model.
        retention: The budget, as a share; None for a method that brings its own.
        **generation: As for `VLM.ask`.
    """
    reply = Reply(method or FULL)
    begun = time.perf_counter()
    try:
        if method is not None:
            check_method(method)
        reused, stream = _stream(vlm, shelf, subject, question, method, retention, generation)
        reply = replace(reply, reused=reused)
        with stream:
            for piece in stream:
                if reply.first is None:
                    reply = replace(reply, first=time.perf_counter() - begun)
                reply = replace(reply, text=reply.text + piece)
                yield reply
            whole = stream.answer
        took = time.perf_counter() - begun
        yield replace(reply, text=whole.text, answer=whole, first=reply.first or took, seconds=took)
    except FoveateError as error:
        yield replace(reply, error=str(error))


def _stream(
    vlm: VLM,
    shelf: Shelf,
    subject: Subject,
    question: str,
    method: str | None,
    retention: float | None,
    generation: dict[str, Any],
) -> tuple[bool, Stream]:
    """The stream of an answer, and whether the picture had been looked at before."""
    key = (subject.key, method or "", retention)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the answer's notes say the same
        prefix = shelf.find(key)
        if prefix is not None:
            with suppress(SessionError):  # the weights have changed: look again
                return True, prefix.ask(question, stream=True, **generation)
        try:
            prefix = vlm.look(subject.medium, method=method, retention=retention)
            stream = prefix.ask(question, stream=True, **generation)
        except UnsupportedError:  # the method, or the model, needs the question first; or asking says what is wrong
            return False, vlm.ask(
                subject.medium, question, method=method, retention=retention, stream=True, **generation
            )
        shelf.keep(key, prefix)
        return False, stream
