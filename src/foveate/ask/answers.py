"""Many questions to one model: as many at a time as memory allows, alike ones in a batch, one look for a picture's.

With a second look they are asked twice: with few tokens, and in full where that was unsure.
"""

import gc
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeGuard, TypeVar

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.ask.generation import FirstToken, Generation, LeastSure
from foveate.ask.loaded import Loaded
from foveate.ask.look import Look, can_share, look_at, of_one_beginning, together, watch
from foveate.ask.media import BYTES, Picture
from foveate.ask.prompt import Prompt
from foveate.ask.running import answers_to, fitting
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.contract.method import Method
from foveate.engine.tower_memo import TowerMemo
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.plain.memory import available
from foveate.plain.upstream import first_line, is_out_of_memory

WINDOW = 8
"""Batches' worth of questions that are in hand at a time, so that a batch can be of like lengths."""
SHARE = 0.25
"""The share of the memory there is that the pictures and films in hand may take."""
CALM = 16
"""Batches without a lack of memory, after which one of twice the size is tried again."""

T = TypeVar("T")
Shelf = dict[Any, Any]
"""Files that were read for the questions in hand, by whatever who reads them knows them by."""
Prepare = Callable[[T, Shelf], Prompt]
Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Reply(Generic[T]):
    """What became of a question.

    Attributes:
        place: Its place among the questions.
        question: As it was given.
        result: The answer; or why there is none.
        preparing: Seconds that its files and its prompt took.
        answering: Seconds that the model took, its share of a batch's.
    """

    place: int
    question: T
    result: Answer | Exception
    preparing: float = 0.0
    answering: float = 0.0

    @property
    def answer(self) -> Answer:
        """The answer; why there is none is raised."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[T]):
    """A question that is ready for the model."""

    place: int
    question: T
    prompt: Prompt
    seconds: float

    def reply(self, result: Answer | Exception, seconds: float = 0.0) -> Reply[T]:
        return Reply(self.place, self.question, result, self.seconds, seconds)


@dataclass(frozen=True, slots=True, eq=False)
class _Origin:
    """What prompts go on from.

    Attributes:
        look: The pictures; None where each prompt begins afresh.
        seconds: What the look took of each prompt's time.
        own: Whether it was made for these prompts, so that each could do without it.
    """

    look: Look | None = None
    seconds: float = 0.0
    own: bool = False


@dataclass(eq=False)
class Answerer:
    """A model that answers many questions under one method, or twice where it is unsure.

    Attributes:
        loaded: The model.
        method: What drops in each that has vision tokens, or a second look; None is the untouched model.
        settings: How answers are decoded.
        batch_size: Most questions a batch.
        first: Whether answers have the log-probabilities of their first token.
        confidence: Whether they have the probability of their least likely token.
        share: The share of the machine's memory that is this model's, where several run.
        tower: What other methods' answerers saw of these pictures, and this one goes on with.

    Raises:
        SettingError: If a second look was calibrated for something else, or answers are not greedy.
    """

    loaded: Loaded
    method: AnyLook = None
    settings: Generation = field(default_factory=Generation)
    batch_size: int = 8
    first: bool = False
    confidence: bool = False
    share: float = 1.0
    tower: TowerMemo | None = None

    def __post_init__(self) -> None:
        self._most = self.batch_size
        self._calm = 0
        self._second: SecondLook | None = None
        self._drops: Method | None = None
        if isinstance(self.method, SecondLook):
            self.method.refuse_with(self.settings)
            self.method.refuse_others(self.loaded, self.settings)
            self._second, self._drops, self.confidence = self.method, self.method.method, True
            self.tower = TowerMemo(deque(maxlen=WINDOW))  # what it saw at the first look serves the second
            self._full = Answerer(self.loaded, None, self.settings, self.batch_size, share=self.share, tower=self.tower)
        else:
            self._drops = self.method
        self._memo: TowerMemo | None = None

    def replies(
        self,
        questions: Iterable[T],
        prepare: Prepare[T],
        *,
        look: Look | None = None,
        stopped: Stopped = lambda: False,
    ) -> Iterator[list[Reply[T]]]:
        """A reply to every question, a batch's as they come, in any order; see `in_order`.

        A batch that fails is halved, until what fails is a question alone. After a lack of memory batches are smaller
        for a while. With a second look, questions in hand are asked with few tokens, and those that are unsure then in
        full, in batches of their own. Where the full model fails, that is the reply: an unsure answer is nobody's.

        Args:
            questions: They are read as they are needed.
            prepare: Makes the prompt of one, whose budget is met. The shelf it is given lasts as long as the questions
                in hand: a file on it need not be read again. What it raises is the question's reply.
            look: What all prompts go on from; None where each begins afresh.
            stopped: Asked before every question and every batch; when it says yes, those left have no reply.

        Raises:
            UnsupportedError: If the device itself fails, which no later question would survive either.
        """
        for window, failed in self._windows(questions, prepare, stopped):
            if failed:
                yield failed
            unsure: dict[int, tuple[Reply[T], Answer]] = {}
            for replies in self._answer(window, look, stopped):
                unsure |= {reply.place: (reply, reply.result) for reply in replies if self._is_unsure(reply.result)}
                if trusted := [reply for reply in replies if reply.place not in unsure]:
                    yield trusted
            if self._second is None:
                continue
            again = [entry for entry in window if entry.place in unsure]
            for replies in self._full._answer(again, None, stopped):
                yield [_after(*unsure[reply.place], reply) for reply in replies]
            if self.tower is not None:
                self.tower.calls.clear()

    def _is_unsure(self, result: Answer | Exception) -> TypeGuard[Answer]:
        """Whether the full model is to be asked; it was already where nothing could be dropped."""
        if self._second is None or isinstance(result, Exception) or result.method is None:
            return False
        return not (result.confidence is not None and result.confidence >= self._second.sure)  # of NaN too

    def _answer(self, window: Sequence[Entry[T]], look: Look | None, stopped: Stopped) -> Iterator[list[Reply[T]]]:
        """Replies to questions that are in hand; see `replies`."""
        for batch, origin in self._batches(window, look):
            if stopped():
                return
            yield from self._answer_batch(batch, origin)

    # -- reading ----------------------------------------------------------------------------------------------

    def _windows(
        self, questions: Iterable[T], prepare: Prepare[T], stopped: Stopped
    ) -> Iterator[tuple[list[Entry[T]], list[Reply[T]]]]:
        """As many questions at a time as there is memory for their pictures, ready for the model; and those that fail.

        One that fails for want of memory is tried again where there are no others.
        """
        window, failed, shelf = list[Entry[T]](), list[Reply[T]](), Shelf()
        for place, question in enumerate(questions):
            if stopped():
                break
            entry = self._prepare(place, question, prepare, shelf)
            failure: Any = entry.result if isinstance(entry, Reply) else None
            if window and (is_out_of_memory(failure) or (isinstance(failure, InputError) and "memory" in str(failure))):
                yield window, failed
                window, failed, shelf = [], [], {}
                entry = self._prepare(place, question, prepare, shelf)
            if isinstance(entry, Reply):
                failed.append(entry)
            else:
                window.append(entry)
            media = {id(medium): medium for entry in window for medium in entry.prompt.media}
            pixels = (
                medium.image.width * medium.image.height if isinstance(medium, Picture) else medium.frames.nbytes // 3
                for medium in media.values()
            )
            held = BYTES * sum(pixels)  # while a processor works on them
            if len(window) + len(failed) >= WINDOW * self.batch_size or held > SHARE * self.share * available():
                yield window, failed
                window, failed, shelf = [], [], {}
        if window or failed:
            yield window, failed

    def _prepare(self, place: int, question: T, prepare: Prepare[T], shelf: Shelf) -> Entry[T] | Reply[T]:
        """A question as the model gets it; or why it cannot."""
        begun = time.perf_counter()
        try:
            prompt = prepare(question, shelf)
            promise = None if self._second is None else self._second.promise
            if promise is not None and promise.single_turn and not prompt.single_turn:
                raise SettingError(
                    "This second look was calibrated on questions alone, and promises conversations nothing."
                )
        except Exception as error:
            _refuse_broken_device(error)
            return Reply(place, question, _reason(error), time.perf_counter() - begun)
        return Entry(place, question, prompt, time.perf_counter() - begun)

    # -- batches ----------------------------------------------------------------------------------------------

    def _batches(self, window: Sequence[Entry[T]], look: Look | None) -> Iterator[tuple[list[Entry[T]], _Origin]]:
        """Prompts that are alike, as many as fit, with what they go on from: the look given, or a picture's."""
        model, inputs = self.loaded.model, [entry.prompt.inputs for entry in window]
        if look is not None:
            for places in together(model, look, inputs):
                yield from self._parts([window[place] for place in places], _Origin(look))
            return
        groups = [[window[place] for place in places] for places in of_one_beginning(model, inputs)]
        self._memo = self.tower
        alone: list[Entry[T]] = []
        for group in groups:
            if len(group) == 1:
                alone += group
            elif can_share(model, self._drops) and (origin := self._look(group)) is not None:
                yield from self._parts(group, origin)
            else:
                self._memo = self._memo or TowerMemo()
                alone += group
        for batch in batches(alone, self.batch_size, lambda entry: entry.prompt.inputs):
            yield from self._parts(batch, _Origin())
        self._memo = None

    def _parts(self, entries: Sequence[Entry[T]], origin: _Origin) -> Iterator[tuple[list[Entry[T]], _Origin]]:
        """The entries in order, as many at a time as may be when their turn comes."""
        start = 0
        while start < len(entries):
            part = list(entries[start : start + self._most])
            yield part, origin
            start += len(part)

    def _look(self, entries: Sequence[Entry[T]]) -> _Origin | None:
        """A look at the pictures that all these are about; None where it fails: each then begins afresh."""
        begun = time.perf_counter()
        inputs = entries[0].prompt.inputs
        try:
            with self.loaded.lock, fitting(self.loaded, inputs), self._remembering():
                look = look_at(self.loaded.model, inputs, self._drops, self.loaded.cuda_graphs)
                if len(entries) > self._most:  # what came of the first of them is out of hand by the last
                    look = watch(look, self.loaded.model)
        except Exception as error:
            _refuse_broken_device(error)
            return None
        return _Origin(look, (time.perf_counter() - begun) / len(entries), own=True)

    def _answer_batch(self, batch: Sequence[Entry[T]], origin: _Origin) -> Iterator[list[Reply[T]]]:
        """Replies to a batch. One that fails is halved, until what fails is a question alone."""
        begun = time.perf_counter()
        prompts = [entry.prompt for entry in batch]
        recorders = [*[FirstToken()] * self.first, *[LeastSure()] * self.confidence]
        extra = {"logits_processor": recorders} if recorders else {}
        try:
            with self._remembering():
                answers = answers_to(self.loaded, prompts, self._drops, self.settings, look=origin.look, extra=extra)
        except Exception as error:
            _refuse_broken_device(error)
            failure = error
        else:
            self._calm += 1
            if self._calm >= CALM and self._most < self.batch_size:  # there was room: larger ones again
                self._most = min(2 * self._most, self.batch_size)
                self._calm = 0
            seconds = origin.seconds + (time.perf_counter() - begun) / len(batch)
            yield [entry.reply(answer, seconds) for entry, answer in zip(batch, answers, strict=True)]
            return
        if is_out_of_memory(failure):
            self._shrink(len(batch))
        if len(batch) > 1:
            half = (len(batch) + 1) // 2
            yield from self._answer_batch(batch[:half], origin)
            yield from self._answer_batch(batch[half:], origin)
        elif origin.own:
            yield from self._answer_batch(batch, _Origin())
        else:
            yield [batch[0].reply(_reason(failure))]

    def _remembering(self) -> AbstractContextManager[object]:
        """The vision tower does not look again at what is remembered of it."""
        if self._memo is None:
            return nullcontext()
        return self._memo.around(self.loaded.model, self._drops)

    def _shrink(self, size: int) -> None:
        """After a lack of memory: smaller batches, and what was held for speed is given back."""
        self._most = max(1, size // 2)
        self._calm = 0
        if self._memo is not None:
            self._memo.calls.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def batches(entries: Iterable[T], size: int, inputs_of: Callable[[T], Mapping[str, Tensor]]) -> Iterator[list[T]]:
    """Put samples together that can share a batch: tensors that fit, lengths as close as can be.

    Args:
        entries: Whatever has a sample.
        size: Most samples a batch.
        inputs_of: The tensors of an entry, batch 1.
    """
    groups: dict[object, list[T]] = {}
    for entry in entries:
        inputs = inputs_of(entry)
        text = inputs["input_ids"].shape
        shapes = [(name, () if value.shape == text else tuple(value.shape[1:])) for name, value in inputs.items()]
        groups.setdefault(tuple(sorted(shapes)), []).append(entry)
    for group in groups.values():
        group.sort(key=lambda entry: inputs_of(entry)["input_ids"].shape[1])
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _after(unsure: Reply[T], answer: Answer, reply: Reply[T]) -> Reply[T]:
    """The reply of a full model that was asked again, and knows the unsure answer before its own."""
    result = reply.result
    if isinstance(result, Answer):
        result = replace(result, confidence=answer.confidence, unsure=answer)
    return replace(reply, result=result, answering=unsure.answering + reply.answering)


def in_order(replies: Iterable[Sequence[Reply[T]]]) -> Iterator[Answer]:
    """The answers, each as soon as those before it are there; why there is none is raised at its place."""
    waiting: dict[int, Reply[T]] = {}
    place = 0
    for batch in replies:
        waiting |= {reply.place: reply for reply in batch}
        while place in waiting:
            yield waiting.pop(place).answer
            place += 1


def _reason(error: Exception) -> Exception:
    """Why a question alone has no answer."""
    if not is_out_of_memory(error):
        return error
    lacking = InputError("It takes more memory than there is, alone too. Scale the picture down, or take fewer frames.")
    lacking.__cause__ = error
    return lacking


def _refuse_broken_device(error: Exception) -> None:
    """Raise where the device fails, which no later question would survive.

    Raises:
        UnsupportedError: If that is so.
    """
    text = first_line(error)
    if not is_out_of_memory(error) and (type(error).__name__ == "AcceleratorError" or "CUDA error" in text):
        raise UnsupportedError(f"The device fails: {text} Run again: what was answered is kept.") from error
