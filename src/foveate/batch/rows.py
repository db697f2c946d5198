"""`Predictor`: one model that answers rows in batches. Files are read once, and failed rows get a reason."""

import os
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from foveate import embedded
from foveate.ask.answer import AS_NOTES
from foveate.ask.answers import Answerer, Reply
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.media import read_once
from foveate.ask.prompt import Prompt, refuse_behind
from foveate.ask.running import AnyMethod, Preparing, drops_of, method_in
from foveate.ask.second_look import AnyLook, SecondLook, conditions_of
from foveate.ask.vlm import VLM
from foveate.batch.columns import columns_of
from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne
from foveate.core.fields import check
from foveate.engine.session import Session
from foveate.errors import BudgetError, FoveateError, InputError, SessionError, SettingError
from foveate.eval.provenance import code_of, conditions
from foveate.naming import members_of
from foveate.plain.flags import EMBEDDED, GraphOptions, MediaOptions
from foveate.plain.folders import folder_of
from foveate.plain.spelling import refuse_keys
from foveate.plain.upstream import brief, first_line
from foveate.runs.crew import device_at, rows_of
from foveate.runs.remote import Remote, is_remote
from foveate.runs.samples import (
    OF_BAD,
    ROOT,
    Bad,
    MediaSample,
    as_said,
    labels_in,
    samples_of,
    stands_inside,
)

KEY = "row"
"""The column with a row's number in the input."""
REASON = "reason"
"""The column with the reason why there is no answer."""
GRAPH = "graph"
"""The column with how the prompt ran, with CUDA graphs: "replayed", "recorded", or why without a graph."""
LONGEST = 1000
"""Maximum letters of a reason. Some quote a file's contents."""
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
"""The columns of an answer, with their type in Parquet. `right` needs a label, the last two a second look."""
DIGITS = 6

BEYOND = 4
"""Maximum length of a prompt, as a multiple of the model's maximum. Longer prompts would delay all others."""
USUAL = 576
"""Vision tokens with which a method is checked before the first row."""

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RowAsking(GraphOptions, MediaOptions):
    """The model and settings with which rows are answered.

    Attributes:
        model, device, dtype, attention, cuda_graphs: As for `foveate.load`.
        max_new_tokens: Maximum tokens of an answer.
        frames, fps, fit: As for `VLM.ask`.
        method: A method or a second look; None is the untouched model.
        batch_size: Maximum rows per batch.
        choices: Candidate answers to every row; empty: answers are free.
        system: The text of a system turn in front of every row, which runs once; None for no such turn.
        within: Base folder of relative paths, which must contain all files. None uses the input's folder as the base,
            and allows any file.
        remote: Reads media behind URLs, and the input if it is one; None refuses them.
    """

    method: AnyLook = None
    batch_size: AtLeastOne = 8
    choices: tuple[str, ...] = ()
    system: str | None = None
    within: str | None = None
    remote: Remote | None = None

    def __post_init__(self) -> None:
        check(self, "batch")
        if self.within is not None and self.remote is not None:
            raise SettingError(
                "Set within or remote (--root or --remote): URLs lie outside of any folder of this machine."
            )

    def load(self) -> VLM:
        """Load the model.

        Raises:
            FoveateError: As in `foveate.load`.
        """
        return load(self.model, **self.loading)

    def begin(self, place: int, count: int) -> "Predictor":
        """Load the model in process `place` of `count`; see `foveate.runs.crew.Task`."""
        return Predictor(replace(self, device=device_at(place, self.device)), share=1 / count)

    @property
    def members(self) -> tuple[Method, ...]:
        """The methods of the (first) look, the members of a chain one by one."""
        method = self.method.method if isinstance(self.method, SecondLook) else self.method
        return () if method is None else members_of(method)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that answers depend on, as plain values. Batch size and device are not among them."""
        names = ("model", "dtype", "attention", "frames", "fps", "fit", "max_new_tokens", "within")
        values = {name: getattr(self, name) for name in names}
        values["method"] = "+".join(member.name for member in self.members) or "none"
        values["method settings"] = [member.to_dict() for member in self.members]
        values["method code"] = [code_of(type(member)) for member in self.members]
        if isinstance(self.method, SecondLook):
            values["sure"] = self.method.sure
        if self.choices:
            values["choices"] = list(self.choices)
        if self.system is not None:
            values["system"] = self.system
        if self.cuda_graphs:
            values["cuda_graphs"] = True
        return values


class PredictorSettings(Preparing, total=False):
    """The keywords of `Predictor`: the dropping ones as for `VLM.ask`, the others as in `RowAsking`."""

    method: AnyMethod | SecondLook | None
    tokens: float | None
    retention: float | None
    sure: float | None
    device: str
    dtype: str
    attention: str
    cuda_graphs: bool
    max_new_tokens: int
    batch_size: int
    choices: Sequence[str]
    within: str | None
    remote: Remote | None


class Predictor:
    """Answers rows with one model: a stage for Ray Data, Daft and other engines, and the worker of `foveate batch`.

        predictor = Predictor("llava-hf/llava-1.5-7b-hf", prompt="What is this?", method="divprune", retention=1/3)
        predictor({"image": ["a.jpg", "b.jpg"]})["answer"]

    Make one in each process. It is pickled and copied without its model, and a copy loads the model again.

    Args:
        model: The model's name or folder (see `foveate.load`), by default "embedded"; or the model and all settings.
        prompt: The question about every row; None reads the rows' own.
        vlm: The loaded model; None loads it. A predictor with a model in memory cannot be pickled or copied.
        share: Share of the machine's memory for this model, if several run, in (0, 1].
        **asking: Keywords of `PredictorSettings`.

    Raises:
        SessionError: By pickling or copying, if the model was given, or changed since it was loaded.
        FoveateError: If settings contradict each other or the given model, the model cannot be loaded, or it does not
            support the method.
    """

    def __init__(
        self,
        model: str | RowAsking | None = None,
        *,
        prompt: str | None = None,
        vlm: VLM | None = None,
        share: float = 1.0,
        **asking: Unpack[PredictorSettings],
    ) -> None:
        if isinstance(model, RowAsking):
            refuse_keys("A Predictor of a RowAsking", asking, ("prompt", "share", "vlm"))
        else:
            settings: dict[str, Any] = {**asking}
            drops = drops_of(*(settings.pop(name, None) for name in ("method", "tokens", "retention", "sure")))
            refuse_keys("A Predictor", asking, ["prompt", "vlm", "share", *PredictorSettings.__annotations__])
            if model is None:
                model = EMBEDDED if vlm is None else getattr(vlm, "name", "")
            model = RowAsking(model=model, method=drops, **settings)
        if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
            raise SettingError(f'prompt must be a question, such as "What is this?"; got {brief(prompt)}.')
        if not isinstance(share, int | float) or not 0 < share <= 1:
            raise SettingError(f"share must be a number in (0, 1], such as 0.5 for one of two; got {brief(share)}.")
        if vlm is not None:
            _refuse_others(model, vlm)
        self.asking, self._prompt, self._share = model, prompt, share
        self._begin(vlm)

    def _begin(self, vlm: VLM | None) -> None:
        """Take or load the model, and refuse settings that it does not support."""
        asking = self.asking
        self.vlm = vlm or asking.load()
        self._loaded = self._conditions() if vlm is None else None
        settings = Generation(max_new_tokens=asking.max_new_tokens)
        self._answerer = Answerer(
            self.vlm, asking.method, settings, asking.batch_size, asking.choices, share=self._share
        )
        if asking.system is not None:
            refuse_behind(self.vlm, asking.system)
        self._try_method()

    def _conditions(self) -> dict[str, str]:
        with self.vlm.lock:  # a running call may change the model for a while
            return conditions_of(self.vlm, Generation())

    def __getstate__(self) -> dict[str, Any]:
        """Pickle everything but the model, with the full path of its folder: another process may run elsewhere."""
        if self._loaded is None or self._conditions() != self._loaded:
            why = "given as vlm=" if self._loaded is None else "changed since it was loaded"
            raise SessionError(
                f"A Predictor whose model was {why} cannot be pickled or copied: a VLM in memory cannot be sent. Save "
                "the model and name its folder, as in Predictor(FOLDER), or make a Predictor in each process."
            )
        state = {name: value for name, value in vars(self).items() if name not in ("vlm", "_answerer", "_loaded")}
        folder = folder_of(self.asking.model) if self.asking.model not in embedded.NAMES else None
        if folder is not None:
            state["asking"] = replace(self.asking, model=os.path.abspath(folder))
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin(None)

    def __call__(self, columns: Any) -> dict[str, list[Any]]:
        """Answer a batch of rows, which are returned by columns. As many rows come out, in their order.

        Args:
            columns: Media and perhaps questions, under the names that `foveate batch` looks for, as lists or arrays by
                name, as a pandas, polars or Arrow table, or as a list of rows. Media are paths,
                `{"bytes": …, "path": …}`, bytes, PIL images or arrays. Relative paths start from the current folder.

        Returns:
            The columns, and: `answer`, or None; `error`, why there is no answer, or None; `retention` and
            `vision_tokens`; and `choices`, with choices. A column that has one of these names becomes `input_NAME`.

        Raises:
            InputError, SettingError: If the columns cannot be read; see `foveate.batch.columns.columns_of`.
            MethodError, UnsupportedError: As `rows`, because all other rows would fail too.
        """
        own = columns_of(columns)
        records = [dict(zip(own, row, strict=True)) for row in zip(*own.values(), strict=True)]
        samples = list(samples_of(records, self._prompt, self.asking.remote is not None).read())
        names = ("answer", "retention", "vision_tokens", *(["choices"] if self.asking.choices else []))
        answers: dict[str, list[Any]] = {name: [None] * len(records) for name in (*names, "error")}
        for row in rows_of(self, samples):
            shown = {"error": row[REASON]} if REASON in row else {name: row[name] for name in names}
            for name, value in shown.items():
                answers[name][row[KEY]] = value
        return _renamed(own, answers) | answers

    def about(self) -> dict[str, Any]:
        """Return everything about the model that answers depend on, as plain values."""
        # Without the device's index: devices of one type give equal answers.
        return conditions(self.vlm) | {"device": self.vlm.model.device.type}

    def rows(self, item: Sequence[MediaSample | Bad], stopped: Callable[[], bool]) -> Iterator[list[Row]]:
        """Yield a row with an answer or a reason for every sample, in any order.

        Args:
            item: Samples, including those that could not be read.
            stopped: See `Answerer.replies`. Samples left after a stop have no row.

        Raises:
            MethodError: If the code of a method of one's own fails.
            UnsupportedError: If the device fails.
        """
        samples = [sample for sample in item if isinstance(sample, MediaSample)]
        replies = self._answerer.replies(samples, self._prepare, stopped=stopped)
        while True:
            with AS_NOTES:
                batch = next(replies, None)
            if batch is None:
                break
            yield [_row(reply) for reply in batch]
        yield [bad_row(sample, sample.reason) for sample in item if isinstance(sample, Bad)]

    def _prepare(self, sample: MediaSample, shelf: dict[Any, Any]) -> Prompt:
        """Prepare a sample for the model. Files in the shelf, a cache, are not read again."""
        asking = self.asking
        if asking.within is not None:
            for path in sample.media:
                if not stands_inside(path) and not Path(path).resolve().is_relative_to(Path(asking.within).resolve()):
                    raise InputError(f"{brief(path)} lies outside of {asking.within}, and is not read.")
        if asking.remote is not None:
            shelf |= {url: asking.remote.data_url(url) for url in sample.media if is_remote(url) and url not in shelf}
        media = [shelf.get(source, source) if is_remote(source) else source for source in sample.media]
        media = read_once(media, asking.frames, asking.fps, shelf)
        prompt = self.vlm.prepare(media, sample.question, **asking.showing, system=asking.system)
        method_in(self.vlm, asking.method, prompt.vision_tokens)
        most = getattr(self.vlm.model.config.get_text_config(), "max_position_embeddings", None)
        if most and prompt.tokens > BEYOND * most:
            raise InputError(
                f"The prompt has {prompt.tokens:,} tokens, and the model was made for {most:,}. Shorten it."
            )
        return prompt

    def _try_method(self) -> None:
        """Refuse a method that the model does not support once, before the first row."""
        tokens = [int(getattr(member, "tokens", None) or 0) for member in self.asking.members]
        try:
            method = method_in(self.vlm, self.asking.method, max(USUAL, *tokens, 0))
        except BudgetError:  # whether the budget can be met depends on the picture
            return
        if method is not None:
            Session(self.vlm.model, method)


def _refuse_others(asking: RowAsking, vlm: VLM) -> None:
    """Refuse settings of loading that are not those of the loaded model. Those left out are not compared."""
    if not isinstance(vlm, VLM):
        raise SettingError(f"vlm must be a loaded model, as from foveate.load; got {brief(vlm)}.")
    here = {"cuda_graphs": False, **vlm.card.to_dict()}
    if asking.model != vlm.name:
        raise SettingError(f"vlm is {brief(vlm.name)}, and model is {brief(asking.model)}. Leave one of them out.")
    for name, value in asking.loading.items():
        if value not in (getattr(GraphOptions, name), here[name], str(here[name]).partition(":")[0]):
            raise SettingError(f"{name} is {value!r}, and that of vlm {here[name]!r}. Leave it out, or load it so.")


def _row(reply: Reply[MediaSample]) -> Row:
    sample, answer = reply.question, reply.result
    if isinstance(answer, Exception):
        reason = str(answer) if isinstance(answer, FoveateError) else f"{type(answer).__name__}: {first_line(answer)}"
        return bad_row(sample, reason)
    notes = [note for note in answer.notes if note != answer.caution]  # that one is about the whole job
    if answer.missed is not None:
        notes.append(f"the budget is not met: {answer.missed}.")
    values: Row = {
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
    if answer.choices:
        values["choices"] = dict(answer.choices)
    if answer.trace.graphs is not None:
        values[GRAPH] = answer.trace.graphs.decoder.latest
    with suppress(InputError):  # with a label that is not a text, the row is answered but not scored
        if labels := labels_in(sample.record, ("label", "labels")):
            values["right"] = as_said(answer.text) in map(as_said, labels)
    return beside(sample.record, values)


def bad_row(sample: MediaSample | Bad, reason: str) -> Row:
    """Return a sample's record with the reason why there is no answer. It can be an input again, from any folder.

    Paths are as in the input, and as in answers. The base folder of relative ones is beside them.
    """
    record = dict(sample.record)
    if isinstance(sample, MediaSample):
        own = {"id": sample.id, "question": sample.question}
        record = {name: text for name, text in own.items() if text not in record.values()} | record
        inside = {place: source for place, source in enumerate(sample.media) if stands_inside(source)}
        if inside:
            value = record[sample.column]
            names = value if isinstance(value, list) else [value]
            record[sample.column] = [inside.get(place, name) for place, name in enumerate(names)]
    if len(reason) > LONGEST:
        reason = f"{reason[:LONGEST]}…"
    root = {ROOT: sample.root} if sample.root else {}
    return beside(record, {KEY: sample.number, REASON: reason, **root})


def beside(record: Mapping[str, Any], values: Mapping[str, Any]) -> Row:
    """Join a record's columns with ours. A record's column with the name of one of ours becomes `input_NAME`.

    The id keeps its name. A record that was a bad row of an earlier job loses its old "row", "reason" and "root".
    """
    was_bad = OF_BAD if {KEY, REASON} <= record.keys() else ()
    others = {name: value for name, value in record.items() if name not in was_bad}
    return _renamed(others, {*OURS, *values, REASON} - {"id"}) | dict(values)


def _renamed(record: Mapping[str, Any], ours: Container[str]) -> Row:
    """Rename columns that have the name of one of ours to `input_NAME`, or to `input_input_NAME` if that is there."""
    prefix = "input_"
    while any(f"{prefix}{name}" in record for name in record if name in ours):
        prefix += "input_"
    return {f"{prefix}{name}" if name in ours else name: value for name, value in record.items()}
