"""`Sheet`: a small table of text that a terminal, a notebook and a report can show."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

__all__ = ["SECTION", "Column", "Sheet"]

SECTION: tuple[str, ...] = ()
"""A row without cells: a gap between the rows above and below it."""

WIDTH = 120  # columns of plain text
BETWEEN = "  "  # what separates two columns of plain text
NARROWEST = 8  # columns of text that a column is not wrapped below

LINE = "1px solid rgba(128, 128, 128, 0.5)"  # grey reads on a white page and on a dark one
CELL = "padding: 2px 10px; vertical-align: top"


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column, and how its cells are laid out.

    Attributes:
        head: What stands above it.
        right: Whether cells are aligned to the right, as numbers are.
        wrap: Whether a cell that is too long for the page goes on in a next line.
    """

    head: str
    right: bool = False
    wrap: bool = False

    @property
    def justify(self) -> Literal["left", "right"]:
        """To which side its cells are aligned."""
        if self.right:
            return "right"
        return "left"


class Sheet:
    """A small table of text. Text is shown as it is: no markup of HTML or rich in it is read.

        Sheet("Speed", ["", Column("ms", right=True)], [("full", "12.5"), ("v2drop", "6.1")], ["Median of 30."])

    `str(sheet)` is plain text, a notebook shows a table, and `rich.print(sheet)` one with its notes.

    Attributes:
        title: The line above; "" for none.
        columns: One a column.
        rows: Cells from left to right, "" where a row has fewer than there are columns; `SECTION` is a gap. A cell may
            have several lines.
        notes: Lines below.
    """

    def __init__(
        self,
        title: str,
        heads: Sequence[str | Column],
        rows: Sequence[Sequence[str]],
        notes: Sequence[str] = (),
    ) -> None:
        """Make a sheet; a head may be given as a string.

        Raises:
            ValueError: If a row has more cells than there are columns.
        """
        self.title = title
        self.columns = tuple(_as_column(head) for head in heads)
        self.rows = tuple(self._filled(row) for row in rows)
        self.notes = tuple(notes)

    def _filled(self, row: Sequence[str]) -> tuple[str, ...]:
        missing = len(self.columns) - len(row)
        if missing < 0:
            raise ValueError(f"A row has {len(row)} cells, but there are {len(self.columns)} columns: {row!r}.")
        if not row:
            return SECTION
        return (*row, *[""] * missing)

    def __repr__(self) -> str:
        filled = [row for row in self.rows if row]
        return f"Sheet({self.title!r}, {len(self.columns)} columns, {len(filled)} rows)"

    def __str__(self) -> str:
        return self.to_text()

    def to_text(self, width: int = WIDTH) -> str:
        """The table as aligned lines of plain text, none longer than `width` where columns can be wrapped."""
        widths = self._widths(width)
        heads = tuple(column.head for column in self.columns)
        lines = []
        if self.title:
            lines = _wrapped(self.title, width)
        if self.columns:
            lines += self._lines(heads, widths)
            lines.append("─" * (sum(widths) + len(BETWEEN) * (len(widths) - 1)))
        for row in self.rows:
            lines += self._lines(row, widths)
        for note in self.notes:
            lines += _wrapped(note, width)
        return "\n".join(lines)

    def _widths(self, width: int) -> list[int]:
        """How wide each column is drawn: as its longest line, or less so that all of them fit into `width`."""
        heads = tuple(column.head for column in self.columns)
        cells = zip(heads, *filter(None, self.rows), strict=True)
        widths = [max(_cell_width(cell) for cell in column) for column in cells]
        excess = sum(widths) + len(BETWEEN) * (len(widths) - 1) - width
        for _ in range(excess):
            widest = self._widest(widths)
            if widest is None:
                break
            widths[widest] -= 1
        return widths

    def _widest(self, widths: Sequence[int]) -> int | None:
        """The column to make narrower: the widest of those that may be wrapped, else of all; None if all are narrow."""
        wide = [index for index, width in enumerate(widths) if width > NARROWEST]
        wrapping = [index for index in wide if self.columns[index].wrap]
        return max(wrapping or wide, key=lambda index: widths[index], default=None)

    def _lines(self, row: Sequence[str], widths: Sequence[int]) -> list[str]:
        """A row as lines of text, as many as its tallest cell has; a gap is an empty one."""
        if not row:
            return [""]
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
        tallest = max(len(cell) for cell in cells)
        lines = []
        for number in range(tallest):
            parts = []
            for column, cell, width in zip(self.columns, cells, widths, strict=True):
                text = "".join(cell[number : number + 1])  # nothing below a cell's last line
                parts.append(_padded(text, width, column.right))
            lines.append(BETWEEN.join(parts).rstrip())
        return lines

    def to_html(self) -> str:
        """The table as HTML without classes or scripts, in the colours of the page around it."""
        parts = [f'<table style="border-collapse: collapse; border: none; {CELL}">']
        if self.title:
            parts.append(f'<caption style="text-align: left; font-weight: bold">{_as_html(self.title)}</caption>')
        if any(column.head for column in self.columns):
            heads = [column.head for column in self.columns]
            parts.append(f"<thead>{self._html_row('th', heads, f'border-bottom: {LINE}')}</thead>")
        parts.append("<tbody>")
        border = ""
        for row in self.rows:
            if not row:
                border = f"border-top: {LINE}"
                continue
            parts.append(self._html_row("td", row, border))
            border = ""
        parts.append("</tbody></table>")
        for note in self.notes:
            parts.append(f'<div style="font-size: smaller; opacity: 0.8">{_as_html(note)}</div>')
        return "".join(parts)

    def _html_row(self, tag: str, row: Sequence[str], border: str) -> str:
        cells = []
        for column, cell in zip(self.columns, row, strict=True):
            style = f"text-align: {column.justify}; {CELL}; {border}".rstrip("; ")
            cells.append(f'<{tag} style="{style}">{_as_html(cell)}</{tag}>')
        return f"<tr>{''.join(cells)}</tr>"

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_rich(self) -> "Table":
        """The table for a rich console, without its notes."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        table = Table(box=SIMPLE_HEAD, title_justify="left")
        if self.title:
            table.title = Text(self.title)
        for column in self.columns:
            table.add_column(Text(column.head), justify=column.justify, no_wrap=not column.wrap)
        for row in self.rows:
            if row:
                table.add_row(*(Text(cell) for cell in row))
            else:
                table.add_section()
        return table

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """What rich prints: the table, and the notes below it as wide as the console."""
        from rich.text import Text

        yield self.to_rich()
        for note in self.notes:
            yield Text(note)


def _as_column(head: str | Column) -> Column:
    if isinstance(head, Column):
        return head
    return Column(head)


def _as_html(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _width(text: str) -> int:
    """Columns that a line of text takes in a terminal: 2 for a Chinese character, 0 for an accent put on a letter."""
    return sum(_character_width(character) for character in text)


def _character_width(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    if unicodedata.east_asian_width(character) in "WF":
        return 2
    return 1


def _cell_width(cell: str) -> int:
    """Columns that the longest line of a cell takes."""
    return max((_width(line) for line in cell.split("\n")), default=0)


def _padded(text: str, width: int, right: bool) -> str:
    blank = " " * (width - _width(text))
    if right:
        return blank + text
    return text + blank


def _wrapped(text: str, width: int) -> list[str]:
    """The lines of a text, each at most `width` columns wide; breaks at spaces, and inside a word longer than that."""
    lines: list[str] = []
    for line in text.split("\n"):
        lines += _broken(line, width)
    return lines


def _broken(line: str, width: int) -> list[str]:
    """A line as several where it is too long."""
    if _width(line) <= width:
        return [line]
    lines, current = [], ""
    for word in line.split(" "):
        joined = f"{current} {word}".lstrip()
        if _width(joined) <= width:
            current = joined
            continue
        if current:
            lines.append(current)
        *full, current = _pieces(word, width)
        lines += full
    return [*lines, current]


def _pieces(word: str, width: int) -> list[str]:
    """A word cut where a line is full."""
    pieces = [""]
    for character in word:
        if pieces[-1] and _width(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces
