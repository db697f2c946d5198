"""What `generate` and `compare` do last: files, then the screen."""

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from rich.console import RenderableType

from foveate.cli.options import OutputOptions
from foveate.cli.outputs import write_picture, write_text
from foveate.cli.screen import as_json, show, show_json

__all__ = ["finish"]


def finish(
    values: Mapping[str, Any], shown: RenderableType, draw: Callable[[], Image.Image], outputs: OutputOptions
) -> None:
    """Write the figure and the JSON file where they were asked for, then print JSON or `shown`.

    What cannot be written is an error after all else is done, so that no answer is lost for it.

    Raises:
        InputError: If a file cannot be written or `draw` knows no places to draw at.
    """
    try:
        if outputs.out is not None:
            write_text(outputs.out, as_json(values))
        if outputs.figure is not None:
            write_picture(outputs.figure, draw())
    finally:
        if outputs.json:
            show_json(values)
        else:
            show(shown)
