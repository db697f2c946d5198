"""One model that answers rows: files are read once, alike prompts go in batches, what fails is kept apart."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.ask.answers import Answerer, Reply
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.media import read_once
from foveate.ask.prompt import Prompt
from foveate.ask.running import method_in
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.engine.session import drop
from foveate.errors import BudgetError, FoveateError, InputError
from foveate.eval.provenance import code_of, conditions
from foveate.naming import members_of
from foveate.plain.files import scheme_of
from foveate.plain.flags import GraphOptions, MediaOptions
from foveate.plain.upstream import brief, first_line
from foveate.runs.crew import device_at
from foveate.runs.samples import Bad, MediaSample, as_said, labels_in

KEY = "row"
"""The column with a row's place in the input."""
REASON = "reason"
"""That with the reason why there is no answer."""
GRAPH = "graph"
"""That with how its prompt ran, where CUDA graphs are asked for: "replayed", "recorded", or why plainly."""
LONGEST = 1000
"""Letters of a reason; some repeat what a file holds."""
OURS = {
    KEY: "int64",
    "answer": "string",
    "retention": "float64",
    "vision_tokens": "int64",
    "tokens": "float64",
    "new_tokens": "int64",
    "prepare_seconds": "float64",
    "answer_seconds": "float64",
    "notes": "list",
    "right": "bool",
    "confidence": "float64",
    "again": "bool",
}
"""The columns of an answer, by their type in Parquet: `right` where there is a label, the last two of a second look."""
DIGITS = 6

BEYOND = 4
"""How many times the length that a model was made for a prompt may have. Longer ones would hold up all others."""
USUAL = 576
"""Vision tokens of a picture for which a method is tried before the first row."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowAsking(GraphOptions, MediaOptions):
    """Which model is asked, and how.

    Attributes:
        model, device, dtype, attention, cuda_graphs: As for `foveate.load`.
        max_new_tokens: The longest answer.
        frames, fps, fit: As for `VLM.ask`.
        method: What drops, or a second look; None is the untouched model.
        batch_size: Most rows that the model answers at a time.
        within: The folder that relative paths start from and files must lie in; None is the input's, and any file is
            read.
    """

    method: AnyLook = None
    batch_size: int = 8
    within: str | None = None

    def load(self) -> VLM:
        """The model.

        Raises:
            FoveateError: As `foveate.load`.
        """
        return load(self.model, **self.loading)

    def begin(self, place: int, count: int) -> "RowAnswerer":
        """The model in process `place` of `count`; see `foveate.runs.crew.Task`."""
        return RowAnswerer(replace(self, device=device_at(place, self.device)), share=1 / count)

    @property
    def members(self) -> tuple[Method, ...]:
        """The methods that drop, at the first look."""
        method = self.method.method if isinstance(self.method, SecondLook) else self.method
        return () if method is None else members_of(method)

    def to_dict(self) -> dict[str, Any]:
        """What an answer depends on, as plain values: not the size of batches, nor where the model runs."""
        names = ("model", "dtype", "attention", "frames", "fps", "fit", "max_new_tokens", "within")
        values = {name: getattr(self, name) for name in names}
        values["method"] = "+".join(member.name for member in self.members) or "none"
        values["method settings"] = [member.to_dict() for member in self.members]
        values["method code"] = [code_of(type(member)) for member in self.members]
        if isinstance(self.method, SecondLook):
            values["sure"] = self.method.sure
        if self.cuda_graphs:
            values["cuda_graphs"] = True
        return values


class RowAnswerer:
    """Answers rows with one model.

    Args:
        asking: How.
        vlm: The model; None loads it.
        share: The share of the machine's memory that is this model's, where several run.

    Raises:
        FoveateError: If the model cannot be loaded, or cannot serve the method.
    """

    def __init__(self, asking: RowAsking, vlm: VLM | None = None, share: float = 1.0) -> None:
        self.asking = asking
        self.vlm = vlm or asking.load()
        self._drops = asking.method
        settings = Generation(max_new_tokens=asking.max_new_tokens)
        self._answerer = Answerer(self.vlm, self._drops, settings, batch_size=asking.batch_size, share=share)
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
            stopped: See `Answerer.replies`; the samples left have no row.

        Raises:
            UnsupportedError: If the device itself fails.
        """
        samples = [sample for sample in item if isinstance(sample, MediaSample)]
        replies = self._answerer.replies(samples, self._prepare, stopped=stopped)
        while True:
            with warnings.catch_warnings(action="ignore"):  # what is warned of is among the answer's notes
                batch = next(replies, None)
            if batch is None:
                break
            yield [_row(reply) for reply in batch]
        yield [bad_row(sample, sample.reason) for sample in item if isinstance(sample, Bad)]

    def _prepare(self, sample: MediaSample, shelf: dict[Any, Any]) -> Prompt:
        """A sample as the model gets it; files on the shelf are not read again."""
        asking = self.asking
        if asking.within is not None:
            for path in sample.media:
                is_file = scheme_of(path) != "data"  # else it lies in the input itself
                if is_file and not Path(path).resolve().is_relative_to(Path(asking.within).resolve()):
                    raise InputError(f"{brief(path)} lies outside of {asking.within}, and is not read.")
        media = read_once(sample.media, asking.frames, asking.fps, shelf)
        prompt = self.vlm.prepare(media, sample.question, **asking.showing)
        method_in(self.vlm, self._drops, prompt.vision_tokens)
        most = getattr(self.vlm.model.config.get_text_config(), "max_position_embeddings", None)
        if most and prompt.tokens > BEYOND * most:
            raise InputError(
                f"The prompt has {prompt.tokens:,} tokens, and the model was made for {most:,}. Shorten it."
            )
        return prompt

    def _try_method(self) -> None:
        """Refuse a method that the model cannot serve before the first row, and not once for every row."""
        tokens = [int(getattr(member, "tokens", None) or 0) for member in self.asking.members]
        try:
            method = method_in(self.vlm, self._drops, max(USUAL, *tokens, 0))
        except BudgetError:  # it depends on the picture
            return
        if method is not None:
            with drop(self.vlm.model, method):
                pass


def _row(reply: Reply[MediaSample]) -> Row:
    sample, answer = reply.question, reply.result
    if isinstance(answer, Exception):
        reason = f"{type(answer).__name__}: {first_line(answer)}"
        if isinstance(answer, FoveateError):
            reason = str(answer)
        return bad_row(sample, reason)
    notes = list(answer.prompt.notes)
    if answer.missed is not None:
        notes.append(f"the budget is not met: {answer.missed}.")
    values = {
        KEY: sample.number,
        "id": sample.id,
        "answer": answer.text,
        "retention": round(answer.retention, DIGITS),
        "vision_tokens": answer.vision_tokens,
        "tokens": round(answer.spent, DIGITS),
        "new_tokens": len(answer.tokens),
        "prepare_seconds": round(reply.preparing, DIGITS),
        "answer_seconds": round(reply.answering, DIGITS),
        "notes": notes,
    }
    if answer.confidence is not None:
        values |= {"confidence": answer.confidence, "again": answer.again}
    if answer.trace.graphs is not None:
        values[GRAPH] = answer.trace.graphs.decoder.latest
    with suppress(InputError):  # a label that is no text: the row is answered, and not scored
        if labels := labels_in(sample.record, ("label", "labels")):
            values["right"] = as_said(answer.text) in map(as_said, labels)
    return beside(sample.record, values)


def bad_row(sample: MediaSample | Bad, reason: str) -> Row:
    """All that a sample has, with the reason why there is no answer; it can be an input again, from any folder."""
    record = dict(sample.record)
    if isinstance(sample, MediaSample):
        own = {"id": sample.id, "question": sample.question}
        record = {name: text for name, text in own.items() if text not in record.values()} | record
        record[sample.column] = list(sample.media)
    if len(reason) > LONGEST:
        reason = f"{reason[:LONGEST]}…"
    return beside(record, {KEY: sample.number, REASON: reason})


def beside(record: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """A record's columns and ours; one of the record's that is called as ours becomes `input_NAME`, but for the id.

    A record that was a bad row once loses what was ours then.
    """
    was_bad = {KEY, REASON} <= record.keys()
    ours = {*OURS, *values, REASON} - {"id"}
    others = ((name, value) for name, value in record.items() if not (was_bad and name in (KEY, REASON)))
    return {f"input_{name}" if name in ours else name: value for name, value in others} | dict(values)
