"""What `generate` and `compare` do last: files, then the screen."""

from collections.abc import Mapping
from typing import Any

from PIL import Image
from rich.console import RenderableType

from foveate.cli.options import OutputOptions
from foveate.cli.outputs import write_picture, write_text
from foveate.cli.screen import as_json, show, show_json

__all__ = ["finish"]


def finish(
    values: Mapping[str, Any], shown: RenderableType, figure: Image.Image | None, outputs: OutputOptions
) -> None:
    """Write the figure and the JSON file where they were asked for, then print JSON or `shown`.

    Raises:
        InputError: If a file cannot be written.
    """
    if outputs.figure is not None and figure is not None:
        write_picture(outputs.figure, figure)
    if outputs.out is not None:
        write_text(outputs.out, as_json(values))
    if outputs.json:
        show_json(values)
    else:
        show(shown)
