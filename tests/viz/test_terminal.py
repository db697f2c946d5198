"""A preview of half blocks, and where there is none."""

from io import StringIO

import pytest
from PIL import Image
from rich.console import Console

from foveate.viz.terminal import COLUMNS, ROWS, preview, preview_on


class Latin(StringIO):
    encoding = "latin-1"


def terminal(**options):
    return Console(**{"file": StringIO(), "force_terminal": True, "color_system": "truecolor", "width": 80} | options)


def shown(image, width=80):
    console = terminal(width=width)
    console.print(preview(image, width, "truecolor"))
    return console.file.getvalue()


def test_a_character_shows_two_pixels_above_one_another():
    image = Image.new("RGB", (2, 2))
    for place, colour in (((0, 0), (255, 0, 0)), ((1, 0), (0, 255, 0)), ((0, 1), (0, 0, 255)), ((1, 1), (9, 9, 9))):
        image.putpixel(place, colour)
    assert shown(image, width=2).split("\n")[0] == (
        "\x1b[38;2;255;0;0;48;2;0;0;255m▀\x1b[0m\x1b[38;2;0;255;0;48;2;9;9;9m▀\x1b[0m"
    )


@pytest.mark.parametrize(
    ("size", "width", "columns", "rows"),
    [
        ((400, 400), 200, 80, ROWS),
        ((800, 200), 200, COLUMNS, 12),
        ((800, 200), 40, 40, 5),
        ((10, 1000), 80, 1, ROWS),
        ((1000, 3), 80, 80, 1),
    ],
)
def test_a_preview_fits(size, width, columns, rows):
    text = preview(Image.new("RGB", size, "red"), width, "truecolor")
    lines = text.plain.rstrip("\n").split("\n")
    assert (len(lines), {len(line) for line in lines}) == (rows, {columns})
    assert len(shown(Image.new("RGB", size, "red"), width).rstrip("\n").split("\n")) == rows


@pytest.mark.parametrize(
    "options",
    [
        {"force_terminal": False},
        {"no_color": True},
        {"_environ": {"TERM": "dumb"}},
        {"color_system": "standard"},
        {"file": Latin()},
    ],
)
def test_a_console_that_cannot_show_it_gets_none(options):
    can = {"_environ": {"TERM": "xterm"}}
    assert preview_on(terminal(**can), Image.new("RGB", (4, 4))) is not None
    assert preview_on(terminal(**can, color_system="256"), Image.new("RGB", (4, 4))) is not None
    assert preview_on(terminal(**options), Image.new("RGB", (4, 4))) is None
