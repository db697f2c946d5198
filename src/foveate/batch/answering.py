"""One model that answers rows: files are read once, alike prompts go in batches, what fails is kept apart."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate._memory import available
from foveate._upstream import brief, first_line, is_out_of_memory
from foveate.ask.answer import Answer
from foveate.ask.answering import Dropping, Solved, answers_to
from foveate.ask.batch import batches, parts
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.media import read_media
from foveate.ask.pictures import BYTES, Picture
from foveate.ask.preparing import Fit
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.batch.rows import Answered, Bad, Result, Row
from foveate.contract.method import Method
from foveate.engine.session import drop
from foveate.errors import BudgetError, FoveateError, InputError, SettingError, UnsupportedError
from foveate.eval.provenance import conditions
from foveate.video import Clip

__all__ = ["Answerer", "Asking", "never"]

SHARE = 0.25
"""The share of the memory there is that the files of the rows in hand may take."""
CALM = 16
"""Batches without a lack of memory, after which one of twice the size is tried again."""
USUAL = 576
"""Vision tokens of a picture for which a method is tried before the first row."""

Media = list[Picture | Clip]


def never() -> bool:
    """Go on."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Which model is asked, and how.

    Attributes:
        model, device, dtype, attention: As for `foveate.load`.
        method: What drops; None is the untouched model.
        tokens, retention, frames, fps, fit: As for `VLM.ask`.
        max_new_tokens: The longest answer.
        batch_size: Most rows that the model answers at a time.
        within: The folder that files must lie in; None reads them anywhere.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    method: Method | None = None
    tokens: float | None = None
    retention: float | None = None
    frames: int | None = None
    fps: float | None = None
    fit: Fit = "own"
    max_new_tokens: int = 64
    batch_size: int = 8
    within: str | None = None

    def load(self) -> VLM:
        """The model.

        Raises:
            FoveateError: As `foveate.load`.
        """
        return load(self.model, device=self.device, dtype=self.dtype, attention=self.attention)

    def to_dict(self) -> dict[str, Any]:
        """What an answer depends on, as plain values: not the size of batches, nor where the model runs."""
        values = {name: getattr(self, name) for name in ("model", "dtype", "attention", "tokens", "retention")}
        values |= {name: getattr(self, name) for name in ("frames", "fps", "fit", "max_new_tokens", "within")}
        values["method"] = None if self.method is None else self.method.to_dict()
        return values


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row that is ready for the model."""

    row: Row
    prompt: Prompt
    solved: Solved
    seconds: float

    def inputs_of(self) -> Mapping[str, Any]:
        return self.prompt.inputs

    def solved_of(self) -> Solved:
        return self.solved


@dataclass
class _Window:
    """Rows in hand, and what their files take."""

    entries: list[_Entry] = field(default_factory=list)
    media: dict[tuple[str, ...], Media] = field(default_factory=dict)
    bytes: int = 0


class Answerer:
    """Answers rows with one model.

    Args:
        asking: How.
        vlm: The model; None loads it.
        share: The share of the machine's memory that is this model's, where several run.

    Raises:
        FoveateError: If the model cannot be loaded, or cannot serve the method.
    """

    def __init__(self, asking: Asking, vlm: VLM | None = None, share: float = 1.0) -> None:
        self.asking = asking
        self.vlm = vlm or asking.load()
        self._dropping = Dropping(asking.method, asking.tokens, asking.retention)
        self._generation = Generation(max_new_tokens=asking.max_new_tokens)
        self._room = SHARE * share
        self._most = asking.batch_size
        self._calm = 0
        self._try_method()

    def about(self) -> dict[str, Any]:
        """All of the model that answers depend on, as plain values."""
        values = conditions(self.vlm)
        values["device"] = self.vlm.model.device.type  # models on two devices of a kind answer alike
        return values

    def answer(self, rows: Sequence[Row | Bad], stop: Callable[[], bool] = never) -> list[Result]:
        """A result for every row, in any order.

        Args:
            rows: With those that could not be read.
            stop: Asked after every batch and before every file; when it says yes, the rows left have no result.

        Raises:
            UnsupportedError: If the device itself fails.
        """
        results: list[Result] = [row for row in rows if isinstance(row, Bad)]
        readable = [row for row in rows if isinstance(row, Row)]
        for entries in self._windows(readable, results, stop):
            for batch, shared in self._batches(entries):
                if stop():
                    return results
                results += self._answered(batch, shared)
        return results

    # -- reading ----------------------------------------------------------------------------------------------

    def _windows(
        self, rows: Sequence[Row], results: list[Result], stop: Callable[[], bool]
    ) -> Iterator[Sequence[_Entry]]:
        """Rows ready for the model, as many at a time as there is memory for their files."""
        window = _Window()
        for row in rows:
            if stop():
                break
            try:
                window.entries.append(self._entry(row, window))
            except Exception as error:
                if not (window.entries and _lacks_memory(error)):
                    results.append(Bad.of(row, _reason(error)))
                    continue
                yield window.entries
                window = _Window()
                results += self._alone(row, window)
            if window.bytes > self._room * available():
                yield window.entries
                window = _Window()
        if window.entries:
            yield window.entries

    def _alone(self, row: Row, window: _Window) -> list[Result]:
        """Read a row again that lacked memory beside others; its result, where it has none but a reason."""
        try:
            window.entries.append(self._entry(row, window))
        except Exception as error:
            return [Bad.of(row, _reason(error))]
        return []

    def _entry(self, row: Row, window: _Window) -> _Entry:
        """A row as the model gets it; files that the window holds are not read again."""
        begun = time.perf_counter()
        asking = self.asking
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same sentences are the answer's notes
            media = window.media.get(row.media)
            if media is None:
                media = self._read(row)
                window.media[row.media] = media
                window.bytes += sum(map(_bytes, media))
            prompt = self.vlm.prepare(media, row.question, frames=asking.frames, fps=asking.fps, fit=asking.fit)
            solved = self._dropping.solved(self.vlm, prompt.vision_tokens)
        return _Entry(row, prompt, solved, time.perf_counter() - begun)

    def _read(self, row: Row) -> Media:
        if self.asking.within is not None:
            for path in row.media:
                if not Path(path).resolve().is_relative_to(Path(self.asking.within).resolve()):
                    raise InputError(f"{brief(path)} lies outside of {self.asking.within}, and is not read.")
        return read_media(row.media, self.asking.frames, self.asking.fps)

    # -- answering --------------------------------------------------------------------------------------------

    def _batches(self, entries: Sequence[_Entry]) -> Iterator[tuple[list[_Entry], bool]]:
        """Batches of prompts that are alike, and whether one is about the same pictures, whose prefill is run once."""
        alone: list[_Entry] = []
        groups: dict[tuple[Any, str], list[_Entry]] = {}
        for entry in entries:
            groups.setdefault((entry.row.media, str(entry.solved)), []).append(entry)
        for group in groups.values():
            if len(group) > 1 and self.vlm.can_share(group[0].solved.method):
                for batch in parts(group, self._most):
                    yield batch, True
            else:
                alone += group
        for batch in batches(alone, self.asking.batch_size, _Entry.inputs_of, _Entry.solved_of):
            for smaller in parts(batch, self._most):
                yield smaller, False

    def _answered(self, batch: Sequence[_Entry], shared: bool) -> list[Result]:
        """The results of a batch. One that fails is halved, until what fails is a row alone."""
        begun = time.perf_counter()
        try:
            answers = self._answers(batch, shared and len(batch) > 1)
        except Exception as error:
            reason, short_of_memory = _reason(error), is_out_of_memory(error)
        else:
            self._grow()
            seconds = (time.perf_counter() - begun) / len(batch)
            return [_result(entry, answer, seconds) for entry, answer in zip(batch, answers, strict=True)]
        if short_of_memory:
            self._shrink(len(batch))
        if len(batch) == 1:
            return [Bad.of(batch[0].row, reason)]
        half = (len(batch) + 1) // 2
        return self._answered(batch[:half], shared) + self._answered(batch[half:], shared)

    def _answers(self, batch: Sequence[_Entry], shared: bool) -> list[Answer]:
        """The model's answers to one batch; `shared` says that the same pictures are looked at once for all."""
        prompts = [entry.prompt for entry in batch]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            solved = batch[0].solved
            if shared:
                with suppress(SettingError):  # a chat template that puts the question before the pictures
                    return self.vlm.answer_sharing(prompts, solved.method, generation=self._generation)
            return answers_to(self.vlm, prompts, solved, self._generation)

    def _shrink(self, size: int) -> None:
        """After a lack of memory: smaller batches, and what was held for speed is given back."""
        self._most = max(1, size // 2)
        self._calm = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _grow(self) -> None:
        """After some batches that had room: larger ones again."""
        self._calm += 1
        if self._calm >= CALM and self._most < self.asking.batch_size:
            self._most = min(2 * self._most, self.asking.batch_size)
            self._calm = 0

    def _try_method(self) -> None:
        """Refuse a method that the model cannot serve before the first row, and not once for every row."""
        try:
            solved = self._dropping.solved(self.vlm, max(USUAL, int(self.asking.tokens or 0)))
        except BudgetError:  # it depends on the picture
            return
        if solved.method is not None:
            with drop(self.vlm.model, solved.method):
                pass


def _bytes(medium: Picture | Clip) -> int:
    """What a picture or film takes in memory while a processor works on it."""
    if isinstance(medium, Picture):
        return medium.image.width * medium.image.height * BYTES
    return int(medium.frames.nbytes) * BYTES // 3


def _result(entry: _Entry, answer: Answer, seconds: float) -> Answered:
    notes = list(answer.notes)
    if answer.missed is not None:
        notes.append(f"the budget is not met: {answer.missed}.")
    return Answered(
        number=entry.row.number,
        id=entry.row.id,
        answer=answer.text,
        retention=answer.retention,
        vision_tokens=answer.vision_tokens,
        tokens=answer.spent,
        new_tokens=len(answer.tokens),
        prepare_seconds=entry.seconds,
        answer_seconds=seconds,
        notes=tuple(notes),
    )


def _lacks_memory(error: Exception) -> bool:
    """Whether a row may be read where there is more memory."""
    return is_out_of_memory(error) or (isinstance(error, InputError) and "memory" in str(error))


def _reason(error: Exception) -> str:
    """Why a row has no answer.

    Raises:
        UnsupportedError: If the device fails, which no later row would survive either.
    """
    if isinstance(error, FoveateError):
        return str(error)
    if is_out_of_memory(error):
        return "It takes more memory than there is, alone too. Scale the picture down, or take fewer frames."
    text = first_line(error)
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in text:
        raise UnsupportedError(f"The device fails: {text} Run again: what was answered is kept.") from error
    return f"{type(error).__name__}: {text}"
