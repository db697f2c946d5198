"""A job: rows in, a folder of answers out, and on from where it stopped."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate._files import named
from foveate._version import __version__
from foveate.batch.answering import Asking
from foveate.batch.here import Chunk, Here, Place
from foveate.batch.listener import Listener
from foveate.batch.output import BAD, Output, open_output
from foveate.batch.ranges import Ranges
from foveate.batch.rows import ID, Answered, Bad, Columns, Result, Row
from foveate.batch.sources import Folder, Parquet, source_of
from foveate.batch.survey import Table, count_rows
from foveate.errors import InputError

__all__ = ["Job", "Summary", "run"]

WINDOW = 8
"""Batches' worth of rows in a chunk, so that a batch can be of like sizes."""
PART_ROWS = 1000
PART_SECONDS = 60.0
"""Seconds after which what is answered goes to the disk, however little it is."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is asked, and where the answers go.

    Attributes:
        input: A folder, or a file of JSON lines (.jsonl), CSV (.csv, .tsv) or Parquet.
        out: The folder for the answers, created if it is missing.
        asking: Which model, and how.
        question: Asked of every row; None reads the column. A folder needs it.
        columns: What the input's columns are called.
        root: The folder that relative paths start from; None is the input's own.
        parts: "jsonl", "parquet", or "auto": Parquet for an input of Parquet.
        part_rows: Rows a part, about.
    """

    input: Path
    out: Path
    asking: Asking
    question: str | None = None
    columns: Columns = Columns()
    root: str | None = None
    parts: str = "auto"
    part_rows: int = PART_ROWS

    def table(self) -> Table:
        """Its input.

        Raises:
            InputError: If it cannot be read.
            SettingError: If it is a folder and there is no question.
            UnsupportedError: If it is Parquet and there is no pyarrow.
        """
        return Table(source_of(self.input), self.columns, self.question, self.root)

    def settings(self, kind: str) -> dict[str, Any]:
        """What the answers depend on besides the input and the model, as plain values."""
        columns = asdict(self.columns)
        return self.asking.to_dict() | {
            "columns": columns,
            "question": self.question,
            "root": self.root,
            "parts": kind,
        }


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What became of a job.

    Attributes:
        input, out: As given.
        rows: Rows of the input.
        answered: Rows with an answer, those of earlier runs included.
        bad: Rows in `bad.jsonl`, those of earlier runs included.
        left: Rows that are not done.
        asked: Rows that this run has done.
        noted: How many of them have a note.
        seconds: What this run took, the loading of the model left out.
        retention: Mean over the answers of this run; None without any.
        vision_tokens: Mean over the answers of this run; None without any.
        parts: Files with answers.
        bad_file: The file in `out` with the bad rows; there is none without one.
    """

    input: str
    out: str
    rows: int
    answered: int
    bad: int
    left: int
    asked: int
    noted: int
    seconds: float
    retention: float | None
    vision_tokens: float | None
    parts: int
    bad_file: str = BAD

    @property
    def rate(self) -> float | None:
        """Rows a second of this run."""
        return self.asked / self.seconds if self.asked and self.seconds else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"foveate": __version__} | asdict(self) | {"rows_per_second": self.rate}


def run(job: Job, place: Place | None = None, listener: Listener | None = None) -> Summary:
    """Answer the rows of a job that are not done yet.

    Whatever ends it, the rows whose part is on the disk are done, and the next run goes on with the others.

    Args:
        job: What is asked, and where the answers go.
        place: Where models run; None is this process.
        listener: Hears how it goes.

    Raises:
        InputError: If the input cannot be read, the folder is in use or was begun with something else, or a part
            cannot be written.
        FoveateError: If the model cannot be loaded, or cannot serve the method.
    """
    listener = listener or Listener()
    table = job.table()
    _check_apart(job, table)
    if table != (table := table.settled()):
        listener.note(f"{named(job.input)} has no column {ID}: rows are called by their number, from 0")
    kind = job.parts
    if kind == "auto":
        kind = "parquet" if isinstance(table.source, Parquet) else "jsonl"
    with open_output(job.out, kind) as output:
        digest, settings = table.source.digest(), job.settings(kind)
        if output.manifest is None:
            rows = count_rows(table)
        else:
            output.check("input", {"sha256": digest})
            output.check("settings", settings)
            rows = output.manifest["rows"]
        output.resume(rows)
        tally = _Tally()
        if len(output.done) < rows:
            with place or Here(job.asking) as models:
                about = models.about()
                if output.manifest is None:
                    begun = {"rows": rows, "input": {"sha256": digest}, "settings": settings, "model": about}
                    output.begin({"foveate": __version__, **begun})
                else:
                    output.check("model", about)
                _answer(job, table, models, output, tally, listener)
        return tally.summary(job, rows, output)


def _answer(job: Job, table: Table, models: Place, output: Output, tally: "_Tally", listener: Listener) -> None:
    """Answer what is not done, and write it down as it comes."""
    assert output.manifest is not None
    before = output.done
    left = output.manifest["rows"] - len(before)
    chunks = _Chunks(table, before, WINDOW * job.asking.batch_size)
    pending: list[Result] = []
    begun = written = time.monotonic()
    with listener.answering(left, len(before)) as advance:
        try:
            for results in models.answered(chunks, listener.stopped):
                pending += results
                tally.add(results)
                advance(len(results))
                if len(pending) >= job.part_rows or time.monotonic() - written >= PART_SECONDS:
                    results, pending = pending, []
                    output.add(results)
                    written = time.monotonic()
        finally:  # also where a model or the input has failed
            if pending:
                output.add(pending)
            tally.seconds = time.monotonic() - begun


@dataclass(frozen=True)
class _Chunks:
    """Rows that are answered together: those whose numbers lie between the same two multiples of `size`.

    So chunks do not depend on where a run has begun. Another process may read them.
    """

    table: Table
    done: Ranges
    size: int

    def __iter__(self) -> Iterator[Chunk]:
        chunk: list[Row | Bad] = []
        for row in self.table.rows(self.done.__contains__):
            if chunk and row.number // self.size != chunk[0].number // self.size:
                yield chunk
                chunk = []
            chunk.append(row)
        if chunk:
            yield chunk


class _Tally:
    """Counts of a run."""

    def __init__(self) -> None:
        self.asked = self.noted = self.answered = 0
        self.retention = self.vision_tokens = self.seconds = 0.0

    def add(self, results: list[Result]) -> None:
        """Count results."""
        self.asked += len(results)
        for result in results:
            if isinstance(result, Answered):
                self.answered += 1
                self.noted += bool(result.notes)
                self.retention += result.retention
                self.vision_tokens += result.vision_tokens

    def summary(self, job: Job, rows: int, output: Output) -> Summary:
        """What became of the job."""
        done = len(output.done)
        return Summary(
            input=str(job.input),
            out=str(job.out),
            rows=rows,
            answered=done - output.bad,
            bad=output.bad,
            left=rows - done,
            asked=self.asked,
            noted=self.noted,
            seconds=self.seconds,
            retention=self.retention / self.answered if self.answered else None,
            vision_tokens=self.vision_tokens / self.answered if self.answered else None,
            parts=output.parts,
        )


def _check_apart(job: Job, table: Table) -> None:
    """Refuse to write answers among the files that are asked about."""
    if not isinstance(table.source, Folder):
        return
    out, folder = Path(os.path.abspath(job.out)).resolve(), job.input.resolve()
    if out.is_relative_to(folder):
        raise InputError(f"{named(job.out)} lies in {named(job.input)}: its files would be rows too. Name another one.")
