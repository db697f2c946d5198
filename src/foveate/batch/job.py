"""`Job`: answer a file or folder of samples into a folder of answers, and continue where the last run stopped."""

import faulthandler
import json
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from foveate.ask.answers import WINDOW
from foveate.ask.second_look import SecondLook
from foveate.batch.numbering import KnownRow, number_rows
from foveate.batch.rows import GRAPH, KEY, OURS, REASON, Row, RowAsking, bad_row
from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne, Count
from foveate.core.fields import check
from foveate.embedded import STRANGE
from foveate.errors import InputError
from foveate.plain.files import spell
from foveate.plain.version import __version__
from foveate.plain.writing import encodable
from foveate.runs.crew import Crew, Here, work_through
from foveate.runs.listener import Listener
from foveate.runs.samples import LINE_KEY, ROOT, Bad, MediaSample, SampleColumns, Samples, arrow, samples_in
from foveate.runs.store import BAD, BROKEN, Numbers, Store, open_store

FIGURES = ("notes", "right", "again", "retention", "vision_tokens", GRAPH)
"""The columns of answers from which a job's figures are computed."""
LOST = "It was in the input when the job was begun, and is gone. If it comes back, it is asked."
DIED = "The process that answered it died, even alone: its file breaks a decoder, or needs more memory than there is."


@dataclass(frozen=True, kw_only=True)
class Job:
    """The input, the questions and the output of a job.

    Attributes:
        input: A folder, or a file of JSON lines (.jsonl), CSV (.csv, .tsv) or Parquet; perhaps a URL of one, as a text.
        out: The folder for the answers, created if missing.
        asking: The model and its settings.
        question: One question for every row; None reads the column. Required for a folder.
        columns: The names of the input's columns.
        parts: "jsonl", "parquet", or "auto", which is Parquet for a Parquet input.
        part_rows: Rows per part.
        limit: Answer only so many rows, from the first on; None is all.
    """

    input: Path | str
    out: Path
    asking: RowAsking
    question: str | None = None
    columns: SampleColumns = SampleColumns()
    parts: Literal["auto", "jsonl", "parquet"] = "auto"
    part_rows: AtLeastOne = 1000
    limit: Count | None = None

    def __post_init__(self) -> None:
        check(self, "batch")


@dataclass(kw_only=True)
class Summary:
    """The result of a job.

    Attributes:
        input, out: As given.
        rows: Rows of the input, or the limit.
        answered: Rows with an answer, including those of earlier runs.
        bad: Rows without an answer, including those of earlier runs.
        broken: How many of the bad rows are lines that cannot be parsed.
        left: Rows that are not done.
        asked: Rows that this run has done.
        seconds: Duration of this run, without loading the model.
        noted: Answered rows with a note. This and the following figures are of the whole job, as the counts above.
        accuracy: Share of right answers among the rows with a label; None without any.
        reasons: Reasons of bad rows, without row-specific values such as file names, with their counts.
        retention: Mean retention of the answers with vision tokens; None without any.
        vision_tokens: Mean vision tokens of the same answers.
        again: Share of the answers for which the full model was asked again; None without a second look.
        graphs: How prompts ran, with counts: "replayed", "recorded", or why without a graph. Empty without CUDA graphs.
        strange: Why the second look's promise does not hold for these rows, judged by `again`, or None.
        caution: The method's warning about a budget this small, or None.
        parts: Number of files with answers.
        bad_file, broken_file: Names of the files in `out` with bad rows (usable as an input) and with broken lines.
            Each exists only if needed.
    """

    input: str
    out: str
    rows: int
    answered: int = 0
    bad: int = 0
    broken: int = 0
    left: int = 0
    asked: int = 0
    seconds: float = 0.0
    noted: int = 0
    accuracy: float | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    retention: float | None = None
    vision_tokens: float | None = None
    again: float | None = None
    graphs: dict[str, int] = field(default_factory=dict)
    strange: str | None = None
    caution: str | None = None
    parts: int = 0
    bad_file: str = BAD
    broken_file: str = BROKEN
    _counts: Counter[str] = field(default_factory=Counter, repr=False)

    @property
    def rate(self) -> float | None:
        """Rows per second of this run, or None."""
        return self.asked / self.seconds if self.asked and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        values = {name: value for name, value in asdict(self).items() if not name.startswith("_")}
        return {"foveate": __version__} | values | {"rows_per_second": self.rate}

    def add(self, row: Row, with_graphs: bool) -> None:
        """Add an answered row to the figures."""
        self.noted += bool(row["notes"])
        means = {"right": "accuracy", "again": "again"}
        if row["vision_tokens"]:
            means |= {"retention": "retention", "vision_tokens": "vision_tokens"}
        for column, mean in means.items():
            value = row.get(column)
            if value is not None:
                self._counts[column] += 1
                before = getattr(self, mean) or 0.0
                setattr(self, mean, before + (value - before) / self._counts[column])
        if with_graphs:
            self.graphs[row[GRAPH]] = self.graphs.get(row[GRAPH], 0) + 1


def run(job: Job, crew: Crew | None = None, listener: Listener | None = None) -> Summary:
    """Answer the rows of a job that are not done yet.

    However a run ends, rows in the folder are done, and the next run continues with the others.

    Args:
        job: The job.
        crew: The processes that run models; None is this process.
        listener: Receives the progress.

    Raises:
        InputError: If the input cannot be read or changes during the run, the folder is in use or was begun with other
            settings, or rows cannot be written.
        FoveateError: If the model cannot be loaded, or does not support the method.
    """
    note = warnings.warn if listener is None else listener.note
    listener = listener or Listener()
    samples = samples_in(job.input, job.columns, job.question, job.asking.within, job.asking.remote, note)
    if samples.is_folder and Path(os.path.abspath(job.out)).resolve().is_relative_to(samples.source.path.resolve()):
        raise InputError(
            f"{spell(job.out)} is inside {samples.source.name}: its files would be rows too. Name another one."
        )
    kind = job.parts
    if kind == "auto":
        kind = "parquet" if samples.source.path.suffix.lower() == ".parquet" and not samples.is_folder else "jsonl"
    if kind == "parquet":
        arrow()
    to_parquet = table_of if kind == "parquet" else None
    with open_store(job.out, KEY, part_rows=job.part_rows, to_parquet=to_parquet) as store:
        settings = job.asking.to_dict() | {"columns": asdict(job.columns), "question": job.question, "parts": kind}
        store.require("settings", settings, "other settings")
        summary = Summary(input=samples.source.name, out=str(job.out), rows=0)
        done = Numbers(store.manifest.get("input", {}).get("rows", 0))
        bad = set()
        for row in store.read(done, FIGURES):
            if REASON in row:
                bad.add(row[KEY])
            else:
                summary.add(row, job.asking.cuda_graphs)
        samples, gone, changed = number_rows(samples, store, bad)
        summary.rows = store.manifest["input"]["rows"]
        done.grow(summary.rows)
        if job.limit is not None:
            summary.rows = min(summary.rows, job.limit)
        summary.left = _count_left(store, summary.rows)
        if summary.left:
            if crew is not None:
                listener.note("each process loads the model")
            with crew or Here(job.asking.begin) as models:
                store.require("model", models.about(), "another model or other versions")
                begun = time.monotonic()
                try:
                    _answer(job, samples, gone, changed, models, store, summary, listener)
                finally:
                    summary.seconds = time.monotonic() - begun
        summary.left = _count_left(store, summary.rows)
    look = job.asking.method
    if isinstance(look, SecondLook) and look.promise is not None and summary.again is not None:
        summary.strange = look.promise.strange(summary.again, summary._counts["again"])
    if isinstance(look, Method) and summary.retention is not None:
        summary.caution = look.caution(summary.retention)
    summary.answered, summary.bad = len(store.done) - store.bad, store.bad
    summary.parts, summary.broken = len(store.parts()), store.broken
    summary.reasons = _reasons(job.out / BAD)
    return summary


def _count_left(store: Store, rows: int) -> int:
    """Return how many of the first `rows` rows are not done."""
    return sum(number not in store.done for number in range(rows))


def _reasons(path: Path) -> dict[str, int]:
    """Count the reasons of bad rows, most frequent first.

    Values of the row become "…" and numbers "N", so equal reasons are counted together.
    """
    reasons: Counter[str] = Counter()
    with suppress(OSError, ValueError), path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            reason = str(row.pop(REASON, ""))
            for value in row.values():
                for text in value if isinstance(value, list) else [value]:
                    if isinstance(text, str) and len(text) > 1 and text in reason:
                        reason = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", "…", reason)
            reason = re.sub(r"…[/\\]…", "…", reason)  # a base folder and a path in it
            reasons[re.sub(r"(?<![\w.])\d+([,.]\d+)*(?!\w)", "N", reason)] += 1
    return dict(reasons.most_common())


def _answer(
    job: Job,
    samples: Samples,
    gone: Mapping[int, KnownRow],
    changed: Set[int],
    models: Crew,
    store: Store,
    summary: Summary,
    listener: Listener,
) -> None:
    """Answer the rows that are not done, and store them as they come. Those that are gone are bad rows."""
    hand = InHand(store.path)
    suspects = set[int]()  # the rows in progress when the last run crashed, as they were then
    with suppress(ValueError, AttributeError):
        first, last = map(int, hand.crashed.split())  # type: ignore[union-attr]
        suspects = set(range(first, last + 1)) - changed

    def take(rows: Sequence[Row]) -> None:
        rows = encodable(rows)
        answers = [row for row in rows if REASON not in row]
        bad = [row for row in rows if REASON in row]
        broken = [row for row in bad if row.keys() <= {KEY, REASON, ROOT, LINE_KEY}]
        store.add(answers, [row for row in bad if row not in broken], broken)
        summary.asked += len(rows)
        for row in answers:
            summary.add(row, job.asking.cuda_graphs)
        if any(STRANGE in row["notes"] for row in answers):
            listener.note(STRANGE)
        advance(len(rows))

    def place(sample: MediaSample | Bad) -> tuple[int, int | None]:
        """Return the key of the chunk in which a row is answered.

        Chunks do not depend on where a run starts. A suspect is a chunk by itself.
        """
        return sample.number // (WINDOW * job.asking.batch_size), sample.number if sample.number in suspects else None

    with listener.stage("Answering", summary.left, summary.rows - summary.left) as advance:
        take(
            [
                bad_row(Bad(number, {"id": str(entry.name)}, LOST), LOST)
                for number, entry in gone.items()
                if number < summary.rows
            ]
        )
        if len(suspects) == 1:
            take([bad_row(sample, DIED) for sample in samples.read(lambda number: number not in suspects)])
        left = samples.read(lambda number: number >= summary.rows or number in store.done)
        chunks: Iterator[list[MediaSample | Bad]] = (list(chunk) for _, chunk in groupby(left, place))
        if isinstance(models, Here):
            chunks = hand.following(chunks, _span)
        work_through(
            chunks,
            models,
            take,
            alone=lambda chunk: ([sample] for sample in chunk if sample.number not in store.done),
            given_up=lambda chunk: [bad_row(sample, DIED) for sample in chunk],
            stopped=listener.stopped,
        )


def _span(chunk: Sequence[MediaSample | Bad]) -> str:
    """Return the first and last number of a chunk, whose rows need not be in the order of their numbers."""
    numbers = [sample.number for sample in chunk]
    return f"{min(numbers)} {max(numbers)}"


# -- rows in progress ------------------------------------------------------------------------------------------


class InHand:
    """A file with the name of the item in progress, after which Python writes a crash report.

    A crash is a fault in native code, such as a decoder. `kill -9` writes no report, so no item is suspected.

    Args:
        folder: The folder of the run.

    Attributes:
        crashed: The name of the item in progress when the last run crashed; None if it did not crash.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".in-hand"
        self.crashed: str | None = None
        with suppress(OSError):
            name, _, crash = self._path.read_text(errors="replace").partition("\n")
            self.crashed = name if crash else None

    def following(self, items: Iterable[Any], name_of: Callable[[Any], str]) -> Iterator[Any]:
        """Yield the items, writing each one's name to the file while this process works on it.

        Nothing is written if `faulthandler` is already enabled elsewhere, or the file cannot be written.
        """
        file = None
        if not faulthandler.is_enabled():
            with suppress(OSError):
                file = self._path.open("wb", buffering=0)
        if file is None:
            yield from items
            return
        with file:
            faulthandler.enable(file, all_threads=False)
            try:
                for item in items:
                    with suppress(OSError):
                        file.seek(0)
                        file.truncate()
                        file.write(f"{name_of(item)}\n".encode())
                    yield item
            finally:
                faulthandler.disable()
        self._path.unlink(missing_ok=True)


# -- Parquet ------------------------------------------------------------------------------------------------------


def table_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Return a pyarrow table of rows. A column with values of several types becomes JSON texts."""
    names = dict.fromkeys(name for row in rows for name in row)
    return arrow().table({name: _column(name, [row.get(name) for row in rows]) for name in names})


def _column(name: str, values: list[Any]) -> Any:
    pyarrow = arrow()
    kind = OURS.get(name)
    if kind == "list":
        kind = pyarrow.list_(pyarrow.string())
    if kind is None and all(value is None for value in values):
        kind = pyarrow.string()
    try:
        column = pyarrow.array(values, type=kind)
        if "struct<>" not in str(column.type):  # Parquet has no empty struct
            return column
    except (pyarrow.ArrowException, OverflowError):
        pass
    return pyarrow.array([None if value is None else json.dumps(value) for value in values], type=pyarrow.string())
