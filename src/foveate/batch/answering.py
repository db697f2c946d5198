"""One model that answers rows: files are read once, alike prompts go in batches, what fails is kept apart."""

import gc
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from foveate._memory import available
from foveate._upstream import brief, first_line, is_out_of_memory
from foveate.ask.answer import Answer
from foveate.ask.answering import answers_to, dropped_in, method_of
from foveate.ask.batch import batches, parts
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.media import read_media
from foveate.ask.pictures import BYTES, Picture
from foveate.ask.preparing import Fit
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.engine.session import drop
from foveate.errors import BudgetError, FoveateError, InputError, SettingError, UnsupportedError
from foveate.eval.provenance import conditions
from foveate.naming import members_of
from foveate.runs.crew import device_at
from foveate.runs.samples import Bad, MediaSample
from foveate.video import Clip

__all__ = ["KEY", "OURS", "REASON", "Asking", "Row", "RowAnswerer", "bad_row", "beside"]

KEY = "row"
"""The column with a row's place in the input."""
REASON = "reason"
"""That with the reason why there is no answer."""
LONGEST = 1000
"""Letters of a reason; some repeat what a file holds."""
OURS = {
    KEY: "int64",
    "id": "string",
    "answer": "string",
    "retention": "float64",
    "vision_tokens": "int64",
    "tokens": "float64",
    "new_tokens": "int64",
    "prepare_seconds": "float64",
    "answer_seconds": "float64",
    "notes": "list",
}
"""The columns of an answer, by their type in Parquet."""
DIGITS = 6

SHARE = 0.25
"""The share of the memory there is that the files of the rows in hand may take."""
CALM = 16
"""Batches without a lack of memory, after which one of twice the size is tried again."""
BEYOND = 4
"""How many times the length that a model was made for a prompt may have. Longer ones would hold up all others."""
USUAL = 576
"""Vision tokens of a picture for which a method is tried before the first row."""

Media = list[Picture | Clip]
Row = dict[str, Any]


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

    def begin(self, place: int, count: int) -> "RowAnswerer":
        """The model in process `place` of `count`; see `foveate.runs.crew.Task`."""
        return RowAnswerer(replace(self, device=device_at(place, self.device)), share=1 / count)

    def to_dict(self) -> dict[str, Any]:
        """What an answer depends on, as plain values: not the size of batches, nor where the model runs."""
        values = {name: getattr(self, name) for name in ("model", "dtype", "attention", "tokens", "retention")}
        values |= {name: getattr(self, name) for name in ("frames", "fps", "fit", "max_new_tokens", "within")}
        members = () if self.method is None else members_of(self.method)
        values["method"] = "+".join(member.name for member in members) or "none"
        values["method settings"] = [member.to_dict() for member in members]
        return values


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sample that is ready for the model."""

    sample: MediaSample
    prompt: Prompt
    seconds: float


@dataclass
class _Window:
    """Rows in hand, and what their files take."""

    entries: list[_Entry] = field(default_factory=list)
    media: dict[tuple[str, ...], Media] = field(default_factory=dict)
    bytes: int = 0


class RowAnswerer:
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
        self._method = method_of(asking.method, asking.tokens, asking.retention)
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

    def __call__(self, item: Sequence[MediaSample | Bad], stopped: Callable[[], bool]) -> Iterator[list[Row]]:
        """A row for every sample, as they come, in any order: with an answer, or with a reason.

        Args:
            item: Samples, with those that could not be read.
            stopped: Asked after every batch and before every file; when it says yes, the samples left have no row.

        Raises:
            UnsupportedError: If the device itself fails.
        """
        bad = [bad_row(one, one.reason) for one in item if isinstance(one, Bad)]
        for entries in self._windows([one for one in item if isinstance(one, MediaSample)], bad, stopped):
            for batch, shared in self._batches(entries):
                if stopped():
                    yield bad
                    return
                yield self._answered(batch, shared)
        yield bad

    # -- reading ----------------------------------------------------------------------------------------------

    def _windows(
        self, samples: Sequence[MediaSample], bad: list[Row], stopped: Callable[[], bool]
    ) -> Iterator[Sequence[_Entry]]:
        """Samples ready for the model, as many at a time as there is memory for their files; others become bad rows."""
        window = _Window()
        for sample in samples:
            if stopped():
                break
            try:
                self._read_into(window, sample)
            except Exception as error:
                if not (window.entries and _lacks_memory(error)):
                    bad.append(bad_row(sample, _reason(error)))
                    continue
                yield window.entries
                window = _Window()
                try:
                    self._read_into(window, sample)
                except Exception as alone:
                    bad.append(bad_row(sample, _reason(alone)))
            if window.bytes > self._room * available():
                yield window.entries
                window = _Window()
        if window.entries:
            yield window.entries

    def _read_into(self, window: _Window, sample: MediaSample) -> None:
        """Put a sample into the window as the model gets it; files that it holds are not read again."""
        begun = time.perf_counter()
        asking = self.asking
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same sentences are the answer's notes
            media = window.media.get(sample.media)
            if media is None:
                media = self._read(sample)
                window.media[sample.media] = media
                window.bytes += sum(map(_bytes, media))
            prompt = self.vlm.prepare(media, sample.question, frames=asking.frames, fps=asking.fps, fit=asking.fit)
            dropped_in(self.vlm, self._method, prompt.vision_tokens)
        tokens = prompt.inputs["input_ids"].shape[1]
        most = getattr(self.vlm.model.config.get_text_config(), "max_position_embeddings", None)
        if most and tokens > BEYOND * most:
            raise InputError(f"The prompt has {tokens:,} tokens, and the model was made for {most:,}. Shorten it.")
        window.entries.append(_Entry(sample, prompt, time.perf_counter() - begun))

    def _read(self, sample: MediaSample) -> Media:
        if self.asking.within is not None:
            for path in sample.media:
                if not Path(path).resolve().is_relative_to(Path(self.asking.within).resolve()):
                    raise InputError(f"{brief(path)} lies outside of {self.asking.within}, and is not read.")
        return read_media(sample.media, self.asking.frames, self.asking.fps)

    # -- answering --------------------------------------------------------------------------------------------

    def _batches(self, entries: Sequence[_Entry]) -> Iterator[tuple[list[_Entry], bool]]:
        """Batches of prompts that are alike, and whether one is about the same pictures, whose prefill is run once."""
        alone: list[_Entry] = []
        groups: dict[tuple[str, ...], list[_Entry]] = {}
        for entry in entries:
            groups.setdefault(entry.sample.media, []).append(entry)
        for group in groups.values():
            if len(group) > 1 and self.vlm.can_share(self._method):
                for batch in parts(group, self._most):
                    yield batch, True
            else:
                alone += group
        for batch in batches(alone, self.asking.batch_size, lambda entry: entry.prompt.inputs):
            for smaller in parts(batch, self._most):
                yield smaller, False

    def _answered(self, batch: Sequence[_Entry], shared: bool) -> list[Row]:
        """The rows of a batch. One that fails is halved, until what fails is a row alone."""
        begun = time.perf_counter()
        try:
            answers = self._answers(batch, shared and len(batch) > 1)
        except Exception as error:
            reason, short_of_memory = _reason(error), is_out_of_memory(error)
        else:
            self._grow()
            seconds = (time.perf_counter() - begun) / len(batch)
            return [_row(entry, answer, seconds) for entry, answer in zip(batch, answers, strict=True)]
        if short_of_memory:
            self._shrink(len(batch))
        if len(batch) == 1:
            return [bad_row(batch[0].sample, reason)]
        half = (len(batch) + 1) // 2
        return self._answered(batch[:half], shared) + self._answered(batch[half:], shared)

    def _answers(self, batch: Sequence[_Entry], shared: bool) -> list[Answer]:
        """The model's answers to one batch; `shared` says that the same pictures are looked at once for all."""
        prompts = [entry.prompt for entry in batch]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shared:
                with suppress(SettingError):  # a chat template that puts the question before the pictures
                    return self.vlm.answer_sharing(prompts, self._method, generation=self._generation)
            return answers_to(self.vlm, prompts, self._method, self._generation)

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
            dropped_in(self.vlm, self._method, max(USUAL, int(self.asking.tokens or 0)))
        except BudgetError:  # it depends on the picture
            return
        if self._method is not None:
            with drop(self.vlm.model, self._method):
                pass


def _bytes(medium: Picture | Clip) -> int:
    """What a picture or film takes in memory while a processor works on it."""
    if isinstance(medium, Picture):
        return medium.image.width * medium.image.height * BYTES
    return int(medium.frames.nbytes) * BYTES // 3


def _row(entry: _Entry, answer: Answer, seconds: float) -> Row:
    notes = list(answer.notes)
    if answer.missed is not None:
        notes.append(f"the budget is not met: {answer.missed}.")
    values = {
        KEY: entry.sample.number,
        "id": entry.sample.id,
        "answer": answer.text,
        "retention": round(answer.retention, DIGITS),
        "vision_tokens": answer.vision_tokens,
        "tokens": round(answer.spent, DIGITS),
        "new_tokens": len(answer.tokens),
        "prepare_seconds": round(entry.seconds, DIGITS),
        "answer_seconds": round(seconds, DIGITS),
        "notes": notes,
    }
    return beside(entry.sample.record, values)


def bad_row(sample: MediaSample | Bad, reason: str) -> Row:
    """All that a sample has, with the reason why there is no answer; it can be an input again, from any folder."""
    record = dict(sample.record)
    if isinstance(sample, MediaSample):
        given = {"id": sample.id, "question": sample.question}
        record = {name: text for name, text in given.items() if text not in record.values()} | record
        record[sample.column] = list(sample.media)
    cut = reason if len(reason) <= LONGEST else f"{reason[:LONGEST]}…"
    return beside(record, {KEY: sample.number, REASON: cut})


def beside(record: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """A record's columns and ours; one of the record's that is called as ours becomes `input_NAME`, but for the id.

    A record that was a bad row once loses what was ours then.
    """
    once = {KEY, REASON} if {KEY, REASON} <= record.keys() else set()
    ours = {*OURS, REASON} - {"id"}
    others = ((name, value) for name, value in record.items() if name not in once)
    return {f"input_{name}" if name in ours else name: value for name, value in others} | dict(values)


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
