"""Printing: results to stdout, notes and progress to stderr."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from foveate.errors import InputError
from foveate.plain.table import WIDEST
from foveate.plain.upstream import printable
from foveate.plain.writing import encodable
from foveate.runs.listener import Advance, Listener


class Screen(Console):
    """A console that lets the command handle a broken pipe; rich's own would exit the program."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again. rich calls this while handling it."""
        raise


def show(*renderables: RenderableType) -> None:
    """Print tables or text to stdout."""
    console = Screen(highlight=False)
    if not console.is_terminal:  # a file has no width: make the console wide enough to cut nothing
        free = console.options.update(width=WIDEST)
        needed = (console.measure(renderable, options=free).minimum for renderable in renderables)
        console.width = max(console.width, 120, *needed)
    with guard_stdout():
        for renderable in renderables:
            console.print(renderable)


def label_lines(rows: Sequence[tuple[str, str]]) -> Table:
    """Return lines of text, each after its label."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    return table


def as_json(values: Mapping[str, Any]) -> str:
    """Return indented JSON that ends with a newline. `encodable` converts values that JSON does not have."""
    return json.dumps(encodable(values), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def show_json(values: Mapping[str, Any]) -> None:
    """Print JSON to stdout."""
    text = as_json(values)
    with guard_stdout():
        sys.stdout.write(text)


@contextmanager
def guard_stdout() -> Iterator[None]:
    """Turn a failed write to stdout, as on a full disk, into an `InputError`.

    A BrokenPipeError passes through: the reader closed the pipe.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard()
        raise InputError(
            f"stdout could not be written: {error.strerror}. Free some space, or redirect it to another file."
        ) from error


def discard() -> None:
    """Send the rest of stdout to the null device, so that Python does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def note(*texts: str | None) -> None:
    """Print each text to stderr, after the program's name. None is no text, and a failed write is ignored."""
    for text in filter(None, texts):
        line = "\n".join(map(printable, text.split("\n")))  # file names may hold terminal escape sequences
        with suppress(OSError):
            Screen(stderr=True, highlight=False, soft_wrap=True).print(Text(f"foveate: {line}"))


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show a spinner on stderr; prints nothing if stderr is not a terminal."""
    with Screen(stderr=True).status(Text(doing)):
        yield


@contextmanager
def counting(doing: str, total: int | None) -> Iterator[Callable[..., object]]:
    """Show progress on stderr: a bar on a terminal, else a line now and then.

    Yields a function that is called with the number of units just finished (1 by default).

    Args:
        doing: The task, in a few words.
        total: Number of units; None if unknown.
    """
    console = Screen(stderr=True)
    if not console.is_terminal:
        lines = Lines(doing, total)
        yield lines.add
        lines.end()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield partial(progress.advance, progress.add_task(doing, total=total))


class OnScreen(Listener):
    """Shows the progress and the notes of a run on stderr."""

    def note(self, text: str) -> None:
        note(text)

    def stage(self, doing: str, total: int | None, done: int = 0) -> AbstractContextManager[Advance]:
        return counting(doing, total)


class Lines:
    """Progress for a file or a pipe: a line at the start, one every 30 s, and one at the end.

    Args:
        doing: The task, in a few words.
        total: Number of units; None if unknown.
        clock: Returns the time in seconds.
    """

    EVERY = 30.0
    """Seconds after which the next line is printed."""

    def __init__(self, doing: str, total: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.doing, self.total, self.done = doing, total, 0
        self._clock = clock
        self._begun = self._last = clock()
        if total != 0:
            note(doing if total is None else f"{doing}: {total} to do")

    def add(self, count: int = 1) -> None:
        """Count finished units, and print a line if one is due."""
        self.done += count
        if self.done and self._clock() - self._last >= self.EVERY:
            self._show()

    def end(self) -> None:
        """Print the last line."""
        if self.done:
            note(f"{self.doing}: {self.done} done in {timedelta(seconds=round(self._clock() - self._begun))}")

    def _show(self) -> None:
        self._last = self._clock()
        if not self.total:
            self.end()
            return
        left = timedelta(seconds=round((self._last - self._begun) / self.done * (self.total - self.done)))
        note(f"{self.doing}: {self.done} of {self.total} ({self.done / self.total:.0%}), {left} left")
