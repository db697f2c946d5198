"""`foveate batch`: pictures and questions from a file or folder, answers into a folder, on from where it stopped."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import BudgetOptions
from foveate.cli.screen import OnScreen, busy, counting, label_lines, note, show, show_json
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.plain.flags import Count, Flag, GraphOptions, MaybeCount, MediaOptions
from foveate.runs.listener import Advance
from foveate.runs.samples import SampleColumns, samples_in

if TYPE_CHECKING:
    from foveate.batch.job import Summary
    from foveate.runs.crew import Crew


Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the columns of IN are called."""

    media_column: Name = None
    """paths of pictures or films, one or a list (default: the first of media, image, images, picture, video)"""
    question_column: Name = None
    """the question (default: the first of question, prompt)"""
    id_column: Name = None
    """a column with a unique id for each row (default: id; a row without one has its number)"""
    number_rows: Flag = False
    """use each row's number, from 0, as its id"""
    text_only: Flag = False
    """let rows have no picture and no film; else they are bad rows"""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """relative paths start here, and no file outside is read (default: they start beside IN; any file is read)"""

    def columns(self) -> SampleColumns:
        """The names that count."""
        usual = SampleColumns()
        return SampleColumns(
            media=usual.media if self.media_column is None else (self.media_column,),
            question=usual.question if self.question_column is None else (self.question_column,),
            id=None if self.number_rows else self.id_column or usual.id,
            text_only=self.text_only,
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Answer a question about every picture of a folder, or every row of a file; stop and go on at any moment.

    IN is a folder (with --prompt), or a file: JSON lines (.jsonl), CSV (.csv, .tsv) or Parquet. OUT is a folder: its
    parts hold the columns of IN with answer, retention, tokens and times. Rows without an answer are in bad.jsonl, each
    with the reason, and lines that are no rows in broken.jsonl; the exit code is then 3. Run the same command again to
    go on, also after a crash: no row is lost, and none is answered twice.

    Examples:
      foveate batch photos/ answers/ --prompt "What is this?"
      foveate batch questions.jsonl answers/ --model llava-hf/llava-1.5-7b-hf --method visiondrop --retention 0.2
      foveate batch table.csv answers/ --media-column file --question-column text --number-rows --parts parquet
      foveate batch questions.parquet answers/ --workers 4 --json
    """

    input: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """a folder of pictures and films, or a file with a row each"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """the folder for the answers; a new or empty one, or one to go on in"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question, asked about every row in place of its own"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """a method, preset, preset file or chain, as in foveate generate (list: foveate methods)"""
    untouched: Flag = False
    """drop nothing: the full model answers"""
    batch_size: Count = 8
    """most rows that the model answers at a time; a batch that takes too much memory is halved"""
    workers: MaybeCount = None
    """processes that answer, each with a model (default: this one alone); with --ray: actors (default: one per GPU)"""
    ray: Annotated[str | None, tyro.conf.arg(metavar="ADDRESS", help_behavior_hint="")] = None
    """run on Ray, on many machines: auto joins this machine's cluster, local starts one; pip install -e '.[ray]'"""
    parts: Literal["auto", "jsonl", "parquet"] = "auto"
    """format of the parts in OUT; auto is Parquet where IN is Parquet, else JSON lines"""
    part_rows: Count = 1000
    """rows per part"""
    limit: MaybeCount = None
    """ask so many rows of IN at most, from the first on; a later run without it goes on with the others"""
    json: Flag = False
    """print the summary as JSON to stdout"""
    columns: Annotated[ColumnOptions, tyro.conf.arg(name="column")] = field(default_factory=ColumnOptions)
    models: Annotated[GraphOptions, tyro.conf.arg(name="model")] = field(default_factory=GraphOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)

    def run(self) -> int:
        """Answer what is not done, write it down as it comes, and print a summary; the exit code."""
        self._check()
        # Only now anything slow is imported: --help and refusals stay quick.
        with busy("Starting torch"):
            from foveate.batch.job import Job, run
            from foveate.batch.rows import RowAsking
            from foveate.cli.setup import find_device, parse_drop, tell_budgets

        find_device(self.models.device)
        root = None if self.columns.root is None else os.path.abspath(self.columns.root)
        drops = None if self.untouched else parse_drop(self.method, self.budgets)
        tell_budgets({self.method: drops}, self.budgets)
        asking = RowAsking(
            **vars(self.models), **vars(self.media), method=drops, batch_size=self.batch_size, within=root
        )
        job = Job(
            input=self.input,
            out=self.out,
            asking=asking,
            question=self.prompt,
            columns=self.columns.columns(),
            parts=self.parts,
            part_rows=self.part_rows,
            limit=self.limit,
        )
        listener = _Stopping()
        crew: Crew | None = None
        if self.ray is not None:
            from foveate.runs.on_ray import Actors

            crew = Actors(asking.begin, self.workers, self.ray)
        elif self.workers is not None:
            from foveate.runs.crew import Pool

            crew = Pool(asking.begin, self.workers)
        summary = run(job, crew, listener)
        if self.json:
            show_json(summary.to_dict())
        else:
            show(label_lines(_lines(summary)))
        for text in filter(None, (summary.strange, summary.caution)):
            note(text)
        listener.end(summary.left)
        if summary.bad:
            return BAD_ROWS
        return DONE

    def _check(self) -> None:
        """Refuse flags that contradict each other, and what cannot be there."""
        if self.prompt is not None and not self.prompt.strip():
            raise UsageError("--prompt is empty. Give the question, or leave it out and name the column.")
        options = self.columns
        if options.number_rows and options.id_column is not None:
            raise UsageError("--number-rows calls rows by their number: leave --id-column out.")
        if self.prompt is not None and options.question_column is not None:
            raise UsageError("--prompt is asked of every row: leave --question-column out.")
        if os.path.isdir(self.input):  # unlike Path.is_dir, no error where the name is too long
            if self.prompt is None:
                raise UsageError('What is asked about the files of the folder? Give it with --prompt "…".')
            if options != ColumnOptions(number_rows=options.number_rows):
                raise UsageError(f"{self.input} is a folder: it has no columns, and its files are their own ids.")
        samples_in(self.input, question=self.prompt)
        if options.root is not None and not options.root.is_dir():
            raise UsageError(f"--root {options.root}: there is no such folder.")
        if self.untouched and (self.budgets != BudgetOptions() or self.method != Batch.method):
            raise UsageError("--untouched drops nothing: leave --method, --budget, --retention, --set and --seed out.")
        check_methods([self.method])
        check_model(self.models.model)


def _lines(summary: "Summary") -> list[tuple[str, str]]:
    """The summary in words, each line with its label."""
    rows = [("Rows", f"{summary.rows:,}, of which {summary.answered:,} are answered")]
    if summary.bad:
        files = [summary.bad_file] * (summary.bad > summary.broken)
        files += [f"{summary.broken_file} (broken lines: {summary.broken:,})"] * (summary.broken > 0)
        rows.append(("Bad", f"{summary.bad:,}, with their reasons in {' and '.join(files)}"))
        rows += [("", f"{count:,}: {reason}") for reason, count in list(summary.reasons.items())[:3]]
    if summary.left:
        rows.append(("Left", f"{summary.left:,}; run the same command again to go on"))
    if summary.rate is not None:
        rows.append(("This run", f"{summary.asked:,} rows in {summary.seconds:.0f} s, {summary.rate:.3g} a second"))
    if summary.accuracy is not None:
        rows.append(("Accuracy", f"{summary.accuracy:.1%} of the answers whose rows have a label"))
    if summary.retention is not None:
        rows.append(("Retention", f"{summary.retention:.1%} of {summary.vision_tokens:,.0f} vision tokens, on average"))
    if summary.again is not None:
        rows.append(("Asked again", f"{summary.again:.1%} of the answers, in full"))
    if summary.graphs:
        plain = [f"{count:,}: {how}" for how, count in summary.graphs.items() if how != "replayed"]
        share = summary.graphs.get("replayed", 0) / sum(summary.graphs.values())
        rows.append(("As a graph", "; ".join([f"{share:.1%} of the answers were replayed", *plain])))
    if summary.noted:
        rows.append(("Notes", f"{summary.noted:,} rows have one, such as that a picture is cropped"))
    rows.append(("Answers", f"{summary.out}, in {summary.parts:,} part{'s' * (summary.parts != 1)}"))
    return rows


class _Stopping(OnScreen):
    """Shows on stderr how a run goes, and lets Ctrl-C and `kill` end it after the rows in hand."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def stopped(self) -> bool:
        return self._signal is not None

    @contextmanager
    def stage(self, doing: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        if done:
            note(f"done already: {done:,} of {done + (total or 0):,} rows")
        with suppress(ValueError):  # only the first thread may say what signals do
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as behind nohup; then it stays ignored
                    self._before[number] = signal.signal(number, self._hear)
        try:
            with counting(doing, total, unit="rows") as advance:
                yield advance
        finally:
            self._restore()

    def end(self, left: int) -> None:
        """End as the signal that was heard would have ended it, where rows are left."""
        if self._signal is not None and left:
            signal.raise_signal(self._signal)

    def _hear(self, number: int, frame: object) -> None:
        self._signal = number
        self._restore()
        note("ending after the rows in hand; once more ends at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
