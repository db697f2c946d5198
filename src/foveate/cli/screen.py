"""What goes where: results to stdout, everything else to stderr."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from foveate.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["as_json", "busy", "counted", "note", "preview", "show", "show_json"]


WIDE = 120  # columns of what goes to a file or a pipe


def show(*renderables: RenderableType) -> None:
    """Print tables or text to stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:  # a file has no edge: nothing is cut to fit one
        console.width = max(console.width, WIDE)
    with _written():
        for renderable in renderables:
            console.print(renderable)


def preview(image: "Image") -> RenderableType:
    """A picture for stdout, where that is a terminal with colours; else a line that says so."""
    from foveate.viz.terminal import preview_on

    drawn = preview_on(Console(), image)
    return drawn or Text("Pictures are shown in terminals with colours; --figure FILE writes one.")


def as_json(values: Mapping[str, Any]) -> str:
    """Indented JSON with a newline at its end; numbers that JSON does not know (NaN) are an error."""
    return json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def show_json(values: Mapping[str, Any]) -> None:
    """Print JSON, and nothing else, to stdout."""
    text = as_json(values)
    with _written():
        sys.stdout.write(text)


@contextmanager
def _written() -> Iterator[None]:
    """Say in one line that stdout takes no more, as on a full disk; a reader that went away is no error."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails once more at its end
        raise InputError(f"stdout could not be written: {error.strerror}. Make room, or name another file.") from error


def note(text: str) -> None:
    """One line to stderr, beginning with the program's name; no answer is lost where stderr takes nothing."""
    with suppress(OSError):
        Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"foveate: {text}"))


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show on stderr that something takes a moment; leaves no trace when stderr is no terminal."""
    with Console(stderr=True).status(Text(doing)):
        yield


@contextmanager
def counted(doing: str, total: int | None) -> Iterator["Progress"]:
    """A progress bar on stderr with the time left; call `advance(progress.task_ids[0])` for each step."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task(doing, total=total)
        yield progress
