"""Output of a command: files, each written completely or not at all, then the screen."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.options import OutputOptions
from foveate.cli.screen import as_json, note, show, show_json
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.table import ENDINGS, Table, in_file
from foveate.plain.writing import PART, publish

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import RenderableType

PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}


def check_targets(outputs: OutputOptions, figure: Path | None = None) -> None:
    """Check before the work starts that the output files can be written.

    Raises:
        UsageError: If a file name has an unknown ending.
        InputError: If a file exists and `force` is False, its folder is missing, or it cannot be written.
    """
    out = outputs.out
    if figure is not None and figure.suffix.lower() not in PICTURES:
        raise UsageError(f"--figure {figure}: the name must end in {', '.join(PICTURES)}.")
    if out is not None and out.suffix.lower() not in outputs.endings:
        raise UsageError(f"--out {out}: the name must end in {', '.join(outputs.endings)}.")
    for flag, path in (("--figure", figure), ("--out", out)):
        if path is not None:
            check_target(flag, path, outputs.force)


def check_target(flag: str, path: Path, force: bool) -> None:
    """Check that a file can be written; see `check_targets`."""
    try:  # permissions, read-only disks, overlong names and link loops show only when tried
        target = path.resolve()
        if target.is_dir():
            raise InputError(f"{flag} {path} is a folder. Name a file in it.")
        if target.exists() and not target.is_file():  # --force would replace /dev/null by a file
            raise InputError(f"{flag} {path} is a device or a pipe. Name a file, or print to stdout with --json.")
        if target.exists() and not force:
            raise InputError(f"{flag} {path} exists already. Name another file, or overwrite it with --force.")
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=PART):
            pass
    except (OSError, RuntimeError) as error:  # a link loop is a RuntimeError up to Python 3.12
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {path} cannot be written: {why}. Name another file, or create its folder.") from error


def write_outputs(
    values: Mapping[str, Any],
    shown: "RenderableType",
    outputs: OutputOptions,
    tables: Sequence[Table] = (),
    figure: Path | None = None,
    draw: "Callable[[], Image.Image] | None" = None,
) -> None:
    """Write the requested files, then print JSON or `shown`.

    The result is printed even if a file cannot be written.

    Args:
        values: The complete result, for JSON.
        shown: The result for people.
        outputs: The output flags.
        tables: The tables in `shown`, for a command with `TableOptions`.
        figure: The file for the figure; None writes none.
        draw: Draws the figure.

    Raises:
        InputError: If a file cannot be written, or the figure cannot be drawn.
    """
    try:
        if outputs.out is not None:
            ending = outputs.out.suffix.lower()
            if tables and ending in ENDINGS:
                text = in_file(tables, ending)
            else:
                text = as_json(values)
            write_text(outputs.out, text, force=outputs.force)
        if figure is not None and draw is not None:
            picture, kind = draw(), PICTURES[figure.suffix.lower()]
            _publish(figure, lambda part: picture.save(part, format=kind), outputs.force)
    finally:
        if outputs.json:
            show_json(values)
        else:
            show(shown)


def write_text(path: Path, text: str, *, force: bool = False) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: The file. If it was created by others since `check_targets`, the text goes to `NAME-2` next to it.
        text: The content.
        force: Overwrite an existing file.
    """
    _publish(path, lambda part: part.write_text(text, encoding="utf-8"), force)


def _publish(path: Path, write: Callable[[Path], object], force: bool) -> None:
    """Write a file, and print a note if it had to get another name."""
    published = publish(path, write, force=force)
    if published != path.resolve():
        note(f"{path} was created by another program and is left unchanged; the result is in {published}.")
