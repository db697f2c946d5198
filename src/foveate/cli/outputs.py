"""What a command hands out: files, written whole or not at all, then the screen."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.cli.options import OutputOptions, TableOptions
from foveate.cli.screen import as_json, note, show, show_json
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.table import ENDINGS, Table, in_file
from foveate.plain.writing import PART, publish

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import RenderableType

JSON = ".json"
PICTURES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".pdf": "PDF"}


def check_targets(outputs: OutputOptions, figure: Path | None = None) -> None:
    """Refuse now what could not be written later.

    Raises:
        UsageError: If the figure's ending names no picture format, that of tables none of theirs, or both files are
            one.
        InputError: If a file exists and `force` is off, its folder is missing, or it cannot be written.
    """
    out = outputs.out
    if figure is not None and figure.suffix.lower() not in PICTURES:
        raise UsageError(f"--figure {figure}: the name must end in {', '.join(PICTURES)}.")
    if isinstance(outputs, TableOptions) and out is not None and out.suffix.lower() not in (JSON, *ENDINGS):
        raise UsageError(f"--out {out}: the name must end in {JSON}, {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
    for flag, path in (("--figure", figure), ("--out", out)):
        if path is not None:
            _check(flag, path, outputs.force)
    if figure is not None and out is not None and figure.resolve() == out.resolve():
        raise UsageError(f"--figure and --out both name {figure}; give each its own file.")


def _check(flag: str, path: Path, force: bool) -> None:
    try:  # only trying tells: rights, a read-only disk, a name that is too long, a link in a circle
        target = path.resolve()
        if target.is_dir():
            raise InputError(f"{flag} {path} is a folder; name a file in it.")
        if not target.parent.is_dir():
            raise InputError(f"{flag} {path}: there is no folder {target.parent}. Create it first.")
        if target.exists() and not target.is_file():  # --force would put a file in the place of /dev/null
            raise InputError(f"{flag} {path} is a device or a pipe. Name a file, or print to stdout with --json.")
        if target.exists() and not force:
            raise InputError(f"{flag} {path} exists already. Name another file, or overwrite it with --force.")
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=PART):
            pass
    except (OSError, RuntimeError) as error:  # Python up to 3.12 calls a circle a RuntimeError
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{flag} {path} cannot be written: {why}. Name another file.") from error


def finish(
    values: Mapping[str, Any],
    shown: "RenderableType",
    outputs: OutputOptions,
    tables: Sequence[Table] = (),
    figure: Path | None = None,
    draw: "Callable[[], Image.Image] | None" = None,
) -> None:
    """Write the figure and the file of JSON or tables where they were asked for, then print JSON or `shown`.

    What cannot be written is an error after all else is done, so that no answer is lost for it.

    Args:
        values: All that there is to say.
        shown: What is printed of it.
        outputs: What was asked for.
        tables: Those in `shown`, of a command with `TableOptions`.
        figure: Where a picture goes.
        draw: Draws it.

    Raises:
        InputError: If a file cannot be written or `draw` knows no places to draw at.
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
    """Write UTF-8 text; a reader never sees half of it.

    Args:
        path: Where to. If a file appeared there since `check_targets`, the text goes into `NAME-2` beside it.
        text: What.
        force: Whether to overwrite a file.
    """
    _publish(path, lambda part: part.write_text(text, encoding="utf-8"), force)


def _publish(path: Path, write: Callable[[Path], object], force: bool) -> None:
    """Write a file, and say so where it had to take another name."""
    published = publish(path, write, force=force)
    if published != path.resolve():
        note(f"{path} appeared while the command ran, and stays as it is; the result is in {published}.")
