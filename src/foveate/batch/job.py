"""A job: rows in, a folder of answers out, and on from where it stopped."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from foveate._files import named
from foveate._version import __version__
from foveate.batch.answering import Asking
from foveate.batch.crashes import Crashes
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
DIED = "The process that answered it died, alone too: its file breaks a decoder, or takes more memory than there is."
DEATHS = 20
"""Rows that may be given up where no other is answered. More are no fault of the rows."""


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
    given, table = table, table.settled()
    kind = job.parts
    if kind == "auto":
        kind = "parquet" if isinstance(table.source, Parquet) else "jsonl"
    with open_output(job.out, kind) as output:
        digest, settings = table.source.digest(), job.settings(kind)
        if output.manifest is None:
            rows = count_rows(table)
            if table != given:
                listener.note(f"{named(job.input)} has no column {ID}: rows are called by their number, from 0")
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
    rows, done = output.manifest["rows"], len(output.done)
    crashes = Crashes(output.path)
    with listener.answering(rows - done, done) as advance, _Writer(job, output, tally, advance) as writer:
        if len(crashes.rows) == 1:
            writer.take(_given_up(table, lambda number: number in output.done or number not in crashes.rows))
        chunks = _Chunks(table, output.done, WINDOW * job.asking.batch_size, crashes.rows)
        followed = crashes.following(chunks) if isinstance(models, Here) else chunks
        writer.take(models.answered(followed, listener.stopped))
        if len(output.done) == rows or listener.stopped():
            return
        # Processes have died at some chunks. Their rows are asked alone; the one that is to blame takes no other along.
        writer.take(models.answered(_Chunks(table, output.done, 1), listener.stopped))
        if listener.stopped():
            return
        if not tally.answered and rows - len(output.done) > DEATHS:
            raise InputError("Processes die whatever they are asked. See what they lack, and run again.")
        writer.take(_given_up(table, output.done.__contains__))


class _Writer:
    """Counts results and writes a part now and then; what is left when the context ends is written too."""

    def __init__(self, job: Job, output: Output, tally: "_Tally", advance: Callable[[int], object]) -> None:
        self._part_rows = job.part_rows
        self._output = output
        self._tally = tally
        self._advance = advance
        self._pending: list[Result] = []

    def __enter__(self) -> Self:
        self._begun = self._written = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:  # also where the model or the input has failed
        self._write()
        self._tally.seconds = time.monotonic() - self._begun

    def take(self, answered: Iterable[list[Result]]) -> None:
        """Write results as they come; all of them are on the disk when this returns."""
        for results in answered:
            self._pending += results
            self._tally.add(results)
            self._advance(len(results))
            if len(self._pending) >= self._part_rows or time.monotonic() - self._written >= PART_SECONDS:
                self._write()
        self._write()

    def _write(self) -> None:
        results, self._pending = self._pending, []
        if results:
            self._output.add(results)
        self._written = time.monotonic()


def _given_up(table: Table, skip: Callable[[int], bool]) -> Iterator[list[Result]]:
    """Rows at which a process has died, alone too."""
    for row in table.rows(skip):
        yield [row if isinstance(row, Bad) else Bad.of(row, DIED)]


@dataclass(frozen=True)
class _Chunks:
    """Rows that are answered together: those whose numbers lie between the same two multiples of `size`.

    So chunks do not depend on where a run has begun. Rows that are to be `alone` are chunks of their own. Another
    process may read them.
    """

    table: Table
    done: Ranges
    size: int
    alone: Ranges = Ranges()

    def __iter__(self) -> Iterator[Chunk]:
        for _, chunk in groupby(self.table.rows(self.done.__contains__), self._place):
            yield list(chunk)

    def _place(self, row: Row | Bad) -> tuple[int, int | None]:
        return row.number // self.size, row.number if row.number in self.alone else None


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
