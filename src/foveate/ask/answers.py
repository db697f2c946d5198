"""`Answerer`: answer many questions in batches that fit into memory.

Similar prompts share a batch, and questions about one picture share its prefill. With a second look, a question is
asked with few tokens first, and the full model is asked again if the answer is uncertain.
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
from foveate.ask.look import Look, can_share, look_at, look_at_system, of_one_beginning, together, watch
from foveate.ask.media import BYTES, Picture
from foveate.ask.prompt import Prompt
from foveate.ask.running import Choices, answers_to, choices_of, fitting
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.contract.method import Method
from foveate.engine.extensions.tower_memo import TowerMemo
from foveate.errors import InputError, MethodError, SettingError, UnsupportedError
from foveate.plain.memory import available
from foveate.plain.upstream import first_line, is_out_of_memory

WINDOW = 8
"""How many batches of questions are read ahead, so that prompts of similar length can share a batch."""
SHARE = 0.25
"""Share of the available memory that the media read ahead may take."""
CALM = 16
"""Successful batches in a row after which the batch size is doubled again."""

T = TypeVar("T")
Shelf = dict[Any, Any]
"""Cache of the files read for the current window of questions. The reader chooses the keys."""
Prepare = Callable[[T, Shelf], Prompt]
Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Reply(Generic[T]):
    """The result of one question.

    Attributes:
        place: Index of the question.
        question: The question as given.
        result: The answer, or the exception.
        preparing: Seconds spent on reading files and preparing the prompt.
        answering: Seconds spent in the model. In a batch: this question's share.
    """

    place: int
    question: T
    result: Answer | Exception
    preparing: float = 0.0
    answering: float = 0.0

    @property
    def answer(self) -> Answer:
        """Return the answer, or raise the exception."""
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


@dataclass(frozen=True, slots=True, eq=False)
class Entry(Generic[T]):
    """A question with its prepared prompt."""

    place: int
    question: T
    prompt: Prompt
    seconds: float

    def reply(self, result: Answer | Exception, seconds: float = 0.0) -> Reply[T]:
        return Reply(self.place, self.question, result, self.seconds, seconds)


@dataclass(slots=True, eq=False)
class _Origin:
    """The prefilled beginning from which batches of prompts continue.

    Attributes:
        look: The prefilled beginning, or None if each prompt runs from its start. A prompt that runs out of memory
            alone sets it to None, for later batches too.
        seconds: Seconds that the look took, per prompt.
        own: Whether the look was made for these prompts. If so, a prompt that fails is tried again without it.
    """

    look: Look | None = None
    seconds: float = 0.0
    own: bool = False


@dataclass(eq=False)
class Answerer:
    """Answers many questions with one model and one method or second look.

    Attributes:
        loaded: The model and its processor.
        method: The method for each prompt that has vision tokens, or a second look. None is the untouched model.
        settings: The decoding settings.
        batch_size: Maximum questions per batch.
        choices: Candidate answers, one of which is each answer; empty: answers are free.
        first: Store the log-probabilities of each answer's first token.
        confidence: Store the probability of each answer's least likely token.
        share: Share of the machine's memory for this model, if several run.
        tower: Vision tower outputs shared with the answerers of other methods.

    Raises:
        SettingError: If a second look was calibrated under other conditions, or decoding is not greedy; and as
            `Choices.of`.
    """

    loaded: Loaded
    method: AnyLook = None
    settings: Generation = field(default_factory=Generation)
    batch_size: int = 8
    choices: Sequence[str] = ()
    first: bool = False
    confidence: bool = False
    share: float = 1.0
    tower: TowerMemo | None = None

    def __post_init__(self) -> None:
        self._most = self.batch_size
        self._calm = 0
        self._second: SecondLook | None = None
        self._drops: Method | None = None
        self._own_memo: TowerMemo | None = None
        if isinstance(self.method, SecondLook):
            self.method.refuse_with(self.settings, self.choices)
            self.method.refuse_others(self.loaded, self.settings)
            self._second, self._drops, self.confidence = self.method, self.method.method, True
            if self.tower is None:  # the second look reuses the tower outputs of the first
                self.tower = self._own_memo = TowerMemo(deque(maxlen=WINDOW))
            self._full = Answerer(self.loaded, None, self.settings, self.batch_size, share=self.share, tower=self.tower)
        else:
            self._drops = self.method
        self._memo: TowerMemo | None = None
        self.settings.refuse_with(self.choices, stream=False)
        self._choices = Choices.of(self.loaded, self.choices) if self.choices else None

    def replies(
        self,
        questions: Iterable[T],
        prepare: Prepare[T],
        *,
        look: Look | None = None,
        stopped: Stopped = lambda: False,
    ) -> Iterator[list[Reply[T]]]:
        """Yield the replies to all questions, batch by batch, in any order; see `in_order`.

        A batch that fails is halved until a single question fails. After running out of memory, batches are smaller
        for a while. With a second look, uncertain questions of a window are asked again in full, in separate batches.
        If the full model fails on one, its reply is that error, not the uncertain answer.

        Args:
            questions: The questions, read lazily.
            prepare: Makes the prompt of a question, and checks its budget. It also gets the shelf, a cache that lasts
                for one window of questions. An exception becomes the question's reply.
            look: The beginning that all prompts continue from, or None.
            stopped: Called before each question and batch. Once it returns True, no further replies come.

        Raises:
            MethodError: If the code of a method of one's own fails, because every later question would fail too.
            UnsupportedError: If the device fails, likewise.
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
            if self._own_memo is not None:
                self._own_memo.calls.clear()

    def _is_unsure(self, result: Answer | Exception) -> TypeGuard[Answer]:
        """Return whether to ask the full model. Without a method the answer is already the full model's."""
        if self._second is None or isinstance(result, Exception) or result.method is None:
            return False
        return not (result.confidence is not None and result.confidence >= self._second.sure)  # True for NaN too

    def _answer(self, window: Sequence[Entry[T]], look: Look | None, stopped: Stopped) -> Iterator[list[Reply[T]]]:
        """Yield the replies to a window of questions; see `replies`."""
        for batch, origin in self._batches(window, look) if window else ():
            if stopped():
                return
            yield from self._answer_batch(batch, origin)

    # -- reading ----------------------------------------------------------------------------------------------

    def _windows(
        self, questions: Iterable[T], prepare: Prepare[T], stopped: Stopped
    ) -> Iterator[tuple[list[Entry[T]], list[Reply[T]]]]:
        """Yield windows of prepared questions whose media fit into memory, each with the replies of those that failed.

        A question that runs out of memory is tried again at the start of an empty window.
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
            held = BYTES * sum(pixels)  # the peak during preprocessing
            if len(window) + len(failed) >= WINDOW * self.batch_size or held > SHARE * self.share * available():
                yield window, failed
                window, failed, shelf = [], [], {}
        if window or failed:
            yield window, failed

    def _prepare(self, place: int, question: T, prepare: Prepare[T], shelf: Shelf) -> Entry[T] | Reply[T]:
        """Return a question's prompt as an entry, or a reply with the exception."""
        begun = time.perf_counter()
        try:
            prompt = prepare(question, shelf)
            promise = None if self._second is None else self._second.promise
            if promise is not None and promise.single_turn and not prompt.single_turn:
                raise SettingError(
                    "This second look was calibrated on single questions, so it promises nothing for conversations."
                )
        except Exception as error:
            _refuse_broken(error)
            return Reply(place, question, _reason(error), time.perf_counter() - begun)
        return Entry(place, question, prompt, time.perf_counter() - begun)

    # -- batches ----------------------------------------------------------------------------------------------

    def _batches(self, window: Sequence[Entry[T]], look: Look | None) -> Iterator[tuple[list[Entry[T]], _Origin]]:
        """Yield batches of similar prompts with what they continue from: the given look, or one made for a picture.

        Prompts with the same beginning share a look if the method allows it. If not, they share only the tower's
        output. All prompts share the text of `system=`.
        """
        model, inputs = self.loaded.model, [entry.prompt.inputs for entry in window]
        if look is not None:
            for places in together(model, look, inputs):
                yield from self._parts([window[place] for place in places], _Origin(look))
            return
        groups = [[window[place] for place in places] for places in of_one_beginning(model, inputs)]
        self._memo = self.tower
        prompt, alone = window[0].prompt, list[Entry[T]]()
        system = self._origin(window, lambda: look_at_system(self.loaded, prompt, self._drops))
        for group in groups:
            if len(group) == 1:
                alone += group
            elif can_share(model, self._drops) and (origin := self._look(group, system.look)).look is not None:
                yield from self._parts(group, origin)
            else:
                self._memo = self._memo or TowerMemo()
                alone += group
        parts = [[*range(len(alone))]]
        if system.look is not None:
            parts = together(model, system.look, [entry.prompt.inputs for entry in alone])
        for similar in ([alone[place] for place in part] for part in parts):
            for batch in batches(similar, self.batch_size, lambda entry: entry.prompt.inputs):
                yield from self._parts(batch, system)
        self._memo = None

    def _parts(self, entries: Sequence[Entry[T]], origin: _Origin) -> Iterator[tuple[list[Entry[T]], _Origin]]:
        """Split entries into batches of the current maximum size, which may change between two batches."""
        start = 0
        while start < len(entries):
            part = list(entries[start : start + self._most])
            yield part, origin
            start += len(part)

    def _look(self, entries: Sequence[Entry[T]], system: Look | None) -> _Origin:
        """Prefill the pictures that all entries share, after the text of `system=`."""
        inputs, model = entries[0].prompt.inputs, self.loaded.model

        def make() -> Look:
            look = look_at(model, inputs, self._drops, self.loaded.cuda_graphs, system)
            # With several batches, the caller may change weights between them.
            return watch(look, model) if len(entries) > self._most else look

        return self._origin(entries, make)

    def _origin(self, entries: Sequence[Entry[T]], make: Callable[[], Look | None]) -> _Origin:
        """Prefill what all entries begin with. If that fails, there is no look, and each prompt runs from its start."""
        begun = time.perf_counter()
        try:
            with self.loaded.lock, fitting(self.loaded, entries[0].prompt.inputs), self._remembering():
                look = make()
        except Exception as error:
            _refuse_broken(error)
            return _Origin()
        return _Origin(look, (time.perf_counter() - begun) / len(entries), own=True)

    def _answer_batch(self, batch: Sequence[Entry[T]], origin: _Origin) -> Iterator[list[Reply[T]]]:
        """Yield the replies to a batch. A batch that fails is halved until a single question fails."""
        begun = time.perf_counter()
        prompts = [entry.prompt for entry in batch]
        recorders: list[FirstToken | LeastSure] = []
        if self.first:
            recorders.append(FirstToken())
        if self.confidence:
            recorders.append(LeastSure())
        extra = {"logits_processor": recorders} if recorders else {}
        try:
            with self._remembering():
                if self._choices is not None:
                    answers = choices_of(self.loaded, prompts, self._choices, self._drops, origin.look)
                else:
                    answers = answers_to(
                        self.loaded, prompts, self._drops, self.settings, look=origin.look, extra=extra
                    )
        except Exception as error:
            _refuse_broken(error)
            failure = error
        else:
            self._calm += 1
            if self._calm >= CALM and self._most < self.batch_size:  # memory has sufficed for a while: double the size
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
            if is_out_of_memory(failure):
                origin.look = self.loaded.system = None  # frees their caches
            yield from self._answer_batch(batch, _Origin())
        else:
            yield [batch[0].reply(_reason(failure))]

    def _remembering(self) -> AbstractContextManager[object]:
        """Return a context in which the vision tower reuses its remembered outputs."""
        if self._memo is None:
            return nullcontext()
        return self._memo.around(self.loaded.model)

    def _shrink(self, size: int) -> None:
        """Halve the batch size after running out of memory, and free caches."""
        self._most = max(1, size // 2)
        self._calm = 0
        if self._memo is not None:
            self._memo.calls.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def batches(entries: Iterable[T], size: int, inputs_of: Callable[[T], Mapping[str, Tensor]]) -> Iterator[list[T]]:
    """Yield batches of entries whose tensors can be collated, sorted by length to minimise padding.

    Entries match if all tensors agree in every dimension except the first. Per-token tensors, of the ids' shape
    (1, tokens), always match.

    Args:
        entries: Objects with one sample each.
        size: Maximum entries per batch.
        inputs_of: Returns the tensors of an entry, batch 1.
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
    """Return the full model's reply with the uncertain answer, its confidence and its time added."""
    result = reply.result
    if isinstance(result, Answer):
        result = replace(result, confidence=answer.confidence, unsure=answer)
    return replace(reply, result=result, answering=unsure.answering + reply.answering)


def in_order(replies: Iterable[Sequence[Reply[T]]]) -> Iterator[Answer]:
    """Yield the answers in the order of the questions, each as soon as all before it are there.

    A question that failed raises its exception at its place.
    """
    waiting: dict[int, Reply[T]] = {}
    place = 0
    for batch in replies:
        waiting |= {reply.place: reply for reply in batch}
        while place in waiting:
            yield waiting.pop(place).answer
            place += 1


def _reason(error: Exception) -> Exception:
    """Return the exception for a single question that failed. Out of memory becomes an `InputError`."""
    if not is_out_of_memory(error):
        return error
    lacking = InputError("It needs more memory than there is, even alone. Scale the picture down or use fewer frames.")
    lacking.__cause__ = error
    return lacking


def _refuse_broken(error: Exception) -> None:
    """Raise if an error means that the device or a method of one's own failed: every later question would fail too.

    Raises:
        MethodError: If the method failed.
        UnsupportedError: If the device failed.
    """
    if isinstance(error, MethodError):
        raise error
    text = first_line(error)
    if not is_out_of_memory(error) and (type(error).__name__ == "AcceleratorError" or "CUDA error" in text):
        raise UnsupportedError(f"The device failed: {text} Run again: the answers so far are kept.") from error
