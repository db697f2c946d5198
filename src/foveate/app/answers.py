"""Answers as they come: from what the model has kept of a picture where it can, else from the picture itself."""

import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from foveate._spelling import written
from foveate.app.subject import Subject
from foveate.ask.answer import Answer
from foveate.ask.vlm import VLM
from foveate.errors import BudgetError, FoveateError, SettingError, UnsupportedError

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
        most: Bytes of keys and values that stay.
    """

    def __init__(self, most: int = 2**30) -> None:
        self.most = most
        self._prefixes: OrderedDict[Key, Any] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: Key) -> Any | None:
        """What was kept; None where it was not, or has gone."""
        with self._lock:
            if key in self._prefixes:
                self._prefixes.move_to_end(key)
            return self._prefixes.get(key)

    def keep(self, key: Key, prefix: Any) -> None:
        """Keep this, and let the oldest go."""
        with self._lock:
            self._prefixes[key] = prefix
            while len(self._prefixes) > 1 and self.nbytes > self.most:
                self._prefixes.popitem(last=False)

    @property
    def nbytes(self) -> int:
        """Bytes of everything kept."""
        return sum(prefix.nbytes for prefix in self._prefixes.values())


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

    A second question about the same picture, method and budget does not look at the picture again, where the model can
    keep what it saw (`VLM.look`) and the method does not read the question.

    Args:
        vlm: The model.
        shelf: Where it is kept what models saw.
        subject: What is asked about.
        question: In any words.
        method: What drops; None is the untouched model.
        retention: The budget, as a share; a method that brings its own is asked without it.
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
) -> tuple[bool, Any]:
    """The stream of an answer, and whether the picture had been looked at before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the answer's notes say the same
        key = (subject.key, method or "", retention)
        prefix = shelf.find(key)
        if prefix is not None:
            return True, prefix.ask(question, stream=True, **generation)
        prefix = _looked(vlm, subject, method, retention)
        if prefix is not None:
            shelf.keep(key, prefix)
            return False, prefix.ask(question, stream=True, **generation)
        return False, vlm.ask(subject.medium, question, method=method, retention=retention, stream=True, **generation)


def _looked(vlm: VLM, subject: Subject, method: str | None, retention: float | None) -> Any | None:
    """What the model keeps of the picture; None where it cannot, or the method reads the question."""
    look = getattr(vlm, "look", None)
    if look is None:
        return None
    try:
        return look(subject.medium, method=method, retention=retention)
    except (BudgetError, UnsupportedError):  # asking afresh works, or says why not
        return None
