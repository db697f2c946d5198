"""Where models run, and the plainest place: this process."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

from foveate.ask.vlm import VLM
from foveate.batch.answering import Answerer, Asking
from foveate.batch.rows import Bad, Result, Row

__all__ = ["Chunk", "Here", "Place"]

Chunk = Sequence[Row | Bad]


class Place(Protocol):
    """Where chunks of rows are answered, while its context lasts."""

    def __enter__(self) -> Self:
        """Load the model."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let it go."""

    def about(self) -> dict[str, Any]:
        """All of the model that answers depend on, as plain values."""

    def answered(self, chunks: Iterable[Chunk], stop: Callable[[], bool]) -> Iterator[list[Result]]:
        """The results of each chunk, in any order; after `stop` says yes, of what is in hand alone."""


class Here:
    """This process, with one model.

    Args:
        asking: How it is asked.
        vlm: A model that is loaded already.
    """

    def __init__(self, asking: Asking, vlm: VLM | None = None) -> None:
        self._asking = asking
        self._vlm = vlm

    def __enter__(self) -> Self:
        self._answerer = Answerer(self._asking, self._vlm)
        return self

    def __exit__(self, *_: object) -> None:
        del self._answerer

    def about(self) -> dict[str, Any]:
        return self._answerer.about()

    def answered(self, chunks: Iterable[Chunk], stop: Callable[[], bool]) -> Iterator[list[Result]]:
        for chunk in chunks:
            yield self._answerer.answer(chunk, stop)
            if stop():
                return
