"""`foveate batch`: answer the rows of a file or the files of a folder, and resume where a run stopped."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import BudgetOptions, MaybeFile
from foveate.cli.screen import OnScreen, busy, counting, label_lines, note, show, show_json
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.plain.files import local_path, spell
from foveate.plain.flags import Count, Flag, GraphOptions, MaybeCount, MediaOptions
from foveate.runs.listener import Advance
from foveate.runs.remote import Remote, is_remote
from foveate.runs.samples import SampleColumns, samples_in

if TYPE_CHECKING:
    from foveate.batch.job import Summary
    from foveate.runs.crew import Crew


Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """The columns of IN."""

    media_column: Name = None
    """column with one or more paths of images or videos
    (default: the first of media, image, images, picture, video)"""
    question_column: Name = None
    """column with the question (default: the first of question, prompt)"""
    id_column: Name = None
    """column with a unique id for each row (default: id; a row without one gets its number)"""
    number_rows: Flag = False
    """use each row's number, from 0, as its id"""
    text_only: Flag = False
    """accept rows without an image or video, which are bad rows otherwise"""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """folder from which relative paths start; files outside are not read
    (default: the folder of IN, and any file is read)"""

    def columns(self) -> SampleColumns:
        """Return the column names to read."""
        usual = SampleColumns()
        return SampleColumns(
            media=usual.media if self.media_column is None else (self.media_column,),
            question=usual.question if self.question_column is None else (self.question_column,),
            id=None if self.number_rows else self.id_column or usual.id,
            text_only=self.text_only,
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Answer a question about every file of a folder, or every row of a table; can be interrupted and resumed.

    IN is a folder (with --prompt), or a file: JSON lines (.jsonl), CSV (.csv, .tsv) or Parquet. OUT is a folder. Its
    part files hold the columns of IN plus the answer, retention, tokens and times. Rows without an answer go to
    bad.jsonl with the reason, and lines that cannot be parsed to broken.jsonl; the exit code is then 3. To resume, run
    the same command again, also after a crash: no row is lost, and none is answered twice. The same command answers new
    files or rows that have come to IN since.

    Examples:
      foveate batch photos/ answers/ --prompt "What is this?"
      foveate batch questions.jsonl answers/ --model llava-hf/llava-1.5-7b-hf --method visiondrop --retention 0.2
      foveate batch table.csv answers/ --media-column file --question-column text --number-rows --parts parquet
      foveate batch questions.parquet answers/ --workers 4 --json
      foveate batch photos/ answers/ --prompt "Is there a dog?" --choices yes no
      foveate batch pages/ answers/ --system-file instruction.txt --prompt "Is it signed?"
    """

    input: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IN")]
    """a folder of images and videos, or a file with one row per question; with --remote perhaps a URL"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder for the answers: new, empty, or of a run to resume"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question for every row; replaces the rows' own questions"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """a method, preset, preset file or chain, as for foveate generate (list: foveate methods)"""
    choices: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """answer with the likeliest of these texts; each row then has the log-probability of every one"""
    system: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """an instruction before every row, as a system turn; it runs once for all rows"""
    system_file: MaybeFile = None
    """a file with the text of --system, in UTF-8"""
    untouched: Flag = False
    """drop nothing: the full model answers"""
    batch_size: Count = 8
    """maximum number of rows answered at a time; a batch that does not fit in memory is halved"""
    workers: MaybeCount = None
    """worker processes, each with its own copy of the model (default: this process alone)"""
    remote: Flag = False
    """read s3://, gs:// and https:// URLs, of IN and of images and videos (needs the extra remote)"""
    remote_private: Flag = False
    """as --remote, and also http:// and addresses of private networks"""
    ray: Name = None
    """gone: see examples/clusters/on_ray.py"""
    parts: Literal["auto", "jsonl", "parquet"] = "auto"
    """format of the part files in OUT; auto is Parquet if IN is Parquet, else JSON lines"""
    part_rows: Count = 1000
    """rows per part file"""
    limit: MaybeCount = None
    """answer at most the first N rows of IN; a later run without --limit continues with the rest"""
    json: Flag = False
    """print the summary as JSON to stdout"""
    columns: Annotated[ColumnOptions, tyro.conf.arg(name="column")] = field(default_factory=ColumnOptions)
    models: Annotated[GraphOptions, tyro.conf.arg(name="model")] = field(default_factory=GraphOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)

    def run(self) -> int:
        """Answer the remaining rows, write each answer as it arrives, print a summary, and return the exit code."""
        self._check()
        system = self._system_text()
        # Slow imports come last, so that --help and usage errors stay fast.
        with busy("Starting torch"):
            from foveate.batch.job import Job, run
            from foveate.batch.rows import RowAsking
            from foveate.cli.setup import find_device, parse_drop, tell_budgets

        find_device(self.models.device)
        root = None if self.columns.root is None else os.path.abspath(self.columns.root)
        drops = None if self.untouched else parse_drop(self.method, self.budgets)
        tell_budgets({self.method: drops}, self.budgets)
        remote = Remote(self.remote_private) if self.remote or self.remote_private else None
        asking = RowAsking(
            **vars(self.models),
            **vars(self.media),
            method=drops,
            batch_size=self.batch_size,
            choices=self.choices or (),
            system=system,
            within=root,
            remote=remote,
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
        if self.workers is not None:
            from foveate.runs.crew import Pool

            crew = Pool(asking.begin, self.workers)
        summary = run(job, crew, listener)
        if self.json:
            show_json(summary.to_dict())
        else:
            show(label_lines(_lines(summary)))
        note(summary.strange, summary.caution)
        listener.end(summary.left)
        return BAD_ROWS if summary.bad else DONE

    def _system_text(self) -> str | None:
        """Return the text of --system or --system-file, which must not be empty."""
        system, file = self.system, self.system_file
        if file is not None:
            if system is not None:
                raise UsageError("--system and --system-file both give the instruction: leave one out.")
            try:
                system = file.read_text(encoding="utf-8-sig").strip()
            except (OSError, ValueError) as error:  # a ValueError if the file is not UTF-8
                raise UsageError(f"--system-file {spell(file)}: {error}. Name a text file in UTF-8.") from error
        if system is not None and not system.strip():
            raise UsageError("The text of --system is empty. Write one, or leave the flag out.")
        return system

    def _check(self) -> None:
        """Refuse flags that contradict each other, and names that do not exist."""
        if self.choices is not None and len(self.choices) < 2:
            raise UsageError(
                f"--choices needs two texts or more; got {' '.join(self.choices) or 'none'}. Separate them by spaces: "
                "--choices yes no."
            )
        if self.ray is not None:
            raise UsageError("--ray is gone: give foveate.batch.Predictor to Ray Data (examples/clusters/on_ray.py).")
        options = self.columns
        if options.number_rows and options.id_column is not None:
            raise UsageError("--number-rows uses row numbers as ids: leave --id-column out.")
        if self.prompt is not None and options.question_column is not None:
            raise UsageError("--prompt is asked about every row: leave --question-column out.")
        is_local = not (is_remote(self.input) and (self.remote or self.remote_private))
        if is_local and os.path.isdir(local_path(self.input)):  # Path.is_dir raises an error if the name is too long
            if self.prompt is None:
                raise UsageError('The question about the files of the folder is missing. Give it with --prompt "…".')
            if options != ColumnOptions(number_rows=options.number_rows):
                raise UsageError(
                    f"{self.input} is a folder, which has no columns; file names are the ids. "
                    "Leave the flags for columns out."
                )
        if is_local:
            samples_in(self.input, question=self.prompt)
        if options.root is not None and not options.root.is_dir():
            raise UsageError(f"--root {options.root}: there is no such folder. Name one that exists.")
        if self.untouched and (self.budgets != BudgetOptions() or self.method != Batch.method):
            raise UsageError("--untouched drops nothing: leave --method, --budget, --retention, --set and --seed out.")
        check_methods([self.method])
        check_model(self.models.model)


def _lines(summary: "Summary") -> list[tuple[str, str]]:
    """Return the summary as lines of text, each with its label."""
    rows = [("Rows", f"{summary.rows:,}, of which {summary.answered:,} are answered")]
    if summary.bad:
        files = [summary.bad_file] * (summary.bad > summary.broken)
        files += [f"{summary.broken_file} (broken lines: {summary.broken:,})"] * (summary.broken > 0)
        rows.append(("Bad", f"{summary.bad:,}, with their reasons in {' and '.join(files)}"))
        rows += [("", f"{count:,}: {reason}") for reason, count in list(summary.reasons.items())[:3]]
    if summary.left:
        rows.append(("Left", f"{summary.left:,}; run the same command again to resume"))
    if summary.rate is not None:
        rows.append(("This run", f"{summary.asked:,} rows in {summary.seconds:.0f} s, {summary.rate:.3g} a second"))
    if summary.accuracy is not None:
        rows.append(("Accuracy", f"{summary.accuracy:.1%} of the answers whose rows have a label"))
    if summary.retention is not None:
        rows.append(("Retention", f"{summary.retention:.1%} of {summary.vision_tokens:,.0f} vision tokens, on average"))
    if summary.again is not None:
        rows.append(("Asked again", f"{summary.again:.1%} of the answers, from the full model"))
    if summary.graphs:
        plain = [f"{count:,}: {how}" for how, count in summary.graphs.items() if how != "replayed"]
        share = summary.graphs.get("replayed", 0) / sum(summary.graphs.values())
        rows.append(("As a graph", "; ".join([f"{share:.1%} of the answers were replayed", *plain])))
    if summary.noted:
        rows.append(("Notes", f"on {summary.noted:,} of the rows, for example that an image is cropped"))
    rows.append(("Answers", f"{summary.out}, in {summary.parts:,} part{'s' * (summary.parts != 1)}"))
    return rows


class _Stopping(OnScreen):
    """Shows progress on stderr, and lets Ctrl-C and `kill` end the run after the current rows."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}

    def stopped(self) -> bool:
        return self._signal is not None

    @contextmanager
    def stage(self, doing: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        if done:
            note(f"done already: {done:,} of {done + (total or 0):,} rows")
        with suppress(ValueError):  # only the main thread can set signal handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a signal ignored under nohup stays ignored
                    self._before[number] = signal.signal(number, self._hear)
        try:
            with counting(doing, total) as advance:
                yield advance
        finally:
            self._restore()

    def end(self, left: int) -> None:
        """Raise the received signal again if rows are left, so that the process ends by it."""
        if self._signal is not None and left:
            signal.raise_signal(self._signal)

    def _hear(self, number: int, frame: object) -> None:
        self._signal = number
        self._restore()
        note("ending after the current rows; press Ctrl-C again to end at once")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
