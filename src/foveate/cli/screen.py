"""What goes where: results to stdout, everything else to stderr."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["as_json", "busy", "counted", "note", "show", "show_json"]


def show(*renderables: RenderableType) -> None:
    """Print tables or text to stdout."""
    console = Console(highlight=False)
    for renderable in renderables:
        console.print(renderable)


def as_json(values: Mapping[str, Any]) -> str:
    """Indented JSON with a newline at its end; numbers that JSON does not know (NaN) are an error."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def show_json(values: Mapping[str, Any]) -> None:
    """Print JSON, and nothing else, to stdout."""
    sys.stdout.write(as_json(values))


def note(text: str) -> None:
    """One line to stderr, beginning with the program's name."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"foveate: {text}"))


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show on stderr that something takes a moment; leaves no trace when stderr is no terminal."""
    with Console(stderr=True).status(Text(doing)):
        yield


@contextmanager
def counted(doing: str, total: int) -> Iterator["Progress"]:
    """A progress bar on stderr with the time left; call `advance(progress.task_ids[0])` for each step."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(doing, total=total)
        yield progress
