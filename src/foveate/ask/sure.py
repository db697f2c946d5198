"""Asking twice: with few tokens, and in full where that was unsure; one function over the one loop of `answers`."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from foveate.ask.answer import Answer
from foveate.ask.answers import WINDOW, Answerer, Prepare, Reply, Shelf, Stopped
from foveate.ask.generation import Generation
from foveate.ask.loaded import Loaded
from foveate.ask.prompt import Prompt
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.engine.tower_memo import TowerMemo
from foveate.errors import SettingError

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class SureAnswerer:
    """A model that answers many questions twice where it is unsure.

    Attributes:
        quick: Answers with few tokens.
        full: Answers in full.
        sure: The least confidence that is trusted.
        single_turn: Whether conversations are refused: the threshold was calibrated on none.
    """

    quick: Answerer
    full: Answerer
    sure: float
    single_turn: bool = False

    def replies(
        self, questions: Iterable[T], prepare: Prepare[T], *, stopped: Stopped = lambda: False
    ) -> Iterator[list[Reply[T]]]:
        """A reply to every question; see `Answerer.replies`.

        Questions in hand are asked with few tokens; those that are unsure then in full, in batches of their own. Where
        the full model fails, that is the reply: an unsure answer is nobody's.
        """

        def prepared(question: T, shelf: Shelf) -> Prompt:
            prompt = prepare(question, shelf)
            if self.single_turn and not prompt.single_turn:
                raise SettingError(
                    "This second look was calibrated on questions alone, and promises conversations nothing."
                )
            return prompt

        for window, failed in self.quick.windows(questions, prepared, stopped):
            if failed:
                yield failed
            unsure: dict[int, Reply[T]] = {}
            for batch in self.quick.answered(window, stopped=stopped):
                unsure |= {reply.place: reply for reply in batch if self._is_unsure(reply.result)}
                if trusted := [reply for reply in batch if reply.place not in unsure]:
                    yield trusted
            again = [entry for entry in window if entry.place in unsure]
            for batch in self.full.answered(again, stopped=stopped):
                yield [_second(unsure[reply.place], reply) for reply in batch]
            if self.quick.tower is not None:
                self.quick.tower.calls.clear()

    def _is_unsure(self, result: Answer | Exception) -> bool:
        """Whether the full model is to be asked; it was already where nothing could be dropped."""
        if isinstance(result, Exception) or result.method is None:
            return False
        return not (result.confidence is not None and result.confidence >= self.sure)  # of NaN too


def answerer_of(
    loaded: Loaded, drops: AnyLook, settings: Generation, batch_size: int = 8, share: float = 1.0
) -> Answerer | SureAnswerer:
    """What answers many questions: once, or twice where it is unsure; see `Answerer` for what it is given.

    Raises:
        SettingError: If a second look was calibrated for something else, or answers are not greedy.
    """
    if not isinstance(drops, SecondLook):
        return Answerer(loaded, drops, settings, batch_size, share=share)
    drops.refuse_with(settings)
    drops.refuse_others(loaded, settings)
    tower = TowerMemo(deque(maxlen=WINDOW))  # what it saw at the first look serves the second
    quick = Answerer(loaded, drops.method, settings, batch_size, confidence=True, share=share, tower=tower)
    full = Answerer(loaded, None, settings, batch_size, share=share, tower=tower)
    return SureAnswerer(quick, full, drops.sure, drops.promise is not None and drops.promise.single_turn)


def _second(unsure: Reply[T], reply: Reply[T]) -> Reply[T]:
    """The reply of a full model that was asked again, and knows the unsure answer before its own."""
    answering = unsure.answering + reply.answering
    if isinstance(reply.result, Exception):
        return replace(reply, answering=answering)
    assert isinstance(unsure.result, Answer)
    answer = replace(reply.result, confidence=unsure.result.confidence, unsure=unsure.result)
    return replace(reply, result=answer, answering=answering)
