"""`Table`: a small table of text for terminals, notebooks, reports and files."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from math import isnan
from typing import TYPE_CHECKING, Literal

from foveate.plain.upstream import extra
from foveate.plain.writing import encodable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.table import Table as RichTable

SECTION: tuple[str, ...] = ()
"""A row without cells, shown as a gap between its neighbours."""

WIDTH = 120  # default width of plain text, in characters
WIDEST = 10_000  # wide enough to cut nothing off

ENDINGS = (".csv", ".md")
"""Endings of files that hold tables."""

LINE = "1px solid rgba(128, 128, 128, 0.5)"  # grey is visible on white and on dark pages
CELL = "padding: 2px 10px; vertical-align: top"

MARKDOWN = re.compile(r"[\\`*_|~]|<(?=[a-zA-Z/!?])|&(?=[#\w]+;)|(?<=\])\(")
"""Matches text in a cell that Markdown would read as markup."""


@dataclass(frozen=True, slots=True)
class Column:
    """The heading and the layout of a column.

    Attributes:
        head: The heading.
        right: Align cells to the right, for numbers.
        wrap: Wrap cells that are too long for the page.
        name: The heading in CSV if `head` is "".
    """

    head: str
    right: bool = False
    wrap: bool = False
    name: str = "name"

    @property
    def justify(self) -> Literal["left", "right"]:
        """The alignment of the cells."""
        if self.right:
            return "right"
        return "left"


class Number(str):
    """A cell of numbers: rounded in its text, and unrounded in CSV files.

        Number("61.4 ± 2.1", {"": 61.36, "low": 59.3, "high": 63.5})

    Attributes:
        values: The numbers, each by the text that CSV appends to the column's heading: "", "low", or a unit such as
            "%".
    """

    __slots__ = ("values",)

    values: Mapping[str, float]

    def __new__(cls, text: str, values: Mapping[str, float] | None = None) -> "Number":
        cell = super().__new__(cls, text)
        cell.values = values or {}  # None in copy and pickle, which set the attribute later
        return cell


class Table:
    """A small table of text. HTML and rich markup in the text is escaped, not interpreted.

        Table("Speed", ["", Column("ms", right=True)], [("full", "12.5"), ("v2drop", "6.1")], ["Median of 30."])

    `str(table)` is plain text, a notebook displays HTML, and `rich.print(table)` prints the table with its notes.

    Attributes:
        title: The line above the table; "" for none.
        columns: The columns, from left to right.
        rows: The cells of each row; missing cells are "", and `SECTION` is a gap. A cell may have several lines, or be
            a `Number`.
        notes: The lines below the table.
    """

    def __init__(
        self, title: str, heads: Sequence[str | Column], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
    ) -> None:
        """Build a table. A string in `heads` is a `Column` with that heading.

        Raises:
            ValueError: If a row has more cells than there are columns.
        """
        self.title = encodable(title)
        self.columns = tuple(head if isinstance(head, Column) else Column(head) for head in heads)
        self.rows = tuple(self._fill(row) for row in rows)
        self.notes = tuple(map(encodable, notes))

    def _fill(self, row: Sequence[str]) -> tuple[str, ...]:
        missing = len(self.columns) - len(row)
        if missing < 0:
            raise ValueError(f"A row has {len(row)} cells, but the table has {len(self.columns)} columns: {row!r}.")
        if not row:
            return SECTION
        return (*map(encodable, row), *[""] * missing)

    def without_empty(self, without: Sequence[str] = ()) -> "Table":
        """Return the table without its empty columns, and without the columns with the headings in `without`."""
        kept = [
            place
            for place, column in enumerate(self.columns)
            if column.head not in without and any(row and row[place] for row in self.rows)
        ]
        rows = [[row[place] for place in kept] if row else SECTION for row in self.rows]
        return Table(self.title, [self.columns[place] for place in kept], rows, self.notes)

    def with_notes(self, notes: Sequence[str]) -> "Table":
        """Return the table with these notes instead of its own."""
        return Table(self.title, self.columns, self.rows, notes)

    def __repr__(self) -> str:
        filled = [row for row in self.rows if row]
        return f"Table({self.title!r}, {len(self.columns)} columns, {len(filled)} rows)"

    def to_text(self, width: int = WIDTH) -> str:
        """Return the table and its notes as plain text. Wider than `width` if the columns cannot be wrapped."""
        with extra("cli", "Tables as text need rich"):
            from rich.console import Console

        console = Console(file=StringIO(), color_system=None, width=WIDEST)
        needed = console.measure(self).minimum
        console.print(self, width=max(width, needed), crop=False)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    __str__ = to_text

    def to_csv(self) -> str:
        """Return the table as CSV, without title, notes and gaps. A `Number` column becomes one column per value."""
        rows = [row for row in self.rows if row]
        written = []
        for place, column in enumerate(self.columns):
            cells = [_values(row[place]) for row in rows]
            for end in dict.fromkeys(end for values in cells for end in values) or [""]:
                head = f"{column.head or column.name} {end}".rstrip()
                written.append([head, *(values.get(end, "") for values in cells)])
        file = StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(zip(*written, strict=True))
        return file.getvalue()

    def to_markdown(self, *, escape: bool = True) -> str:
        """Return the table as Markdown, without title, notes and gaps.

        Args:
            escape: Escape the cells as plain text; if False, the cells are Markdown already.
        """
        marks = {"left": "---", "right": "---:"}
        lines = [[column.head for column in self.columns], *(row for row in self.rows if row)]
        if escape:
            lines = [[_as_markdown(cell) for cell in line] for line in lines]
        lines.insert(1, [marks[column.justify] for column in self.columns])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_html(self) -> str:
        """Return the table and its notes as HTML, without classes or scripts, in the colours of the page."""
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

    _repr_html_ = to_html

    def to_rich(self) -> "RichTable":
        """Return the table for a rich console, without its notes."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=SIMPLE_HEAD, title_justify="left")
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

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        """Measure the width. A table in which no column wraps is never narrower than its content."""
        measured = console.measure(self.to_rich(), options=options)
        if any(column.wrap for column in self.columns):
            return measured
        return measured.with_minimum(measured.maximum)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """Yield the table, then the notes, which use the full width of the console."""
        from rich.text import Text

        yield self.to_rich()
        for note in self.notes:
            yield Text(note)


def number(value: float | None, form: str) -> Number:
    """Return a cell with one number, formatted by `format`, empty for None and NaN.

    With "%", CSV has the value in percent.
    """
    if value is None or isnan(value):
        return Number("")
    if form.endswith("%"):
        values = {"%": 100 * value}
    else:
        values = {"": value}
    return Number(format(value, form), values)


def in_file(tables: Sequence[Table], ending: str) -> str:
    """Return the text of a file with these tables, separated by empty lines.

    Markdown includes the titles and notes. CSV has no notes, and titles only if there are several tables.

    Args:
        tables: The tables.
        ending: The ending of the file's name, one of `ENDINGS`.
    """
    return "\n".join(_text_of(table, ending, len(tables) > 1) for table in tables)


def _text_of(table: Table, ending: str, titled: bool) -> str:
    """Return one table of a file. `titled` adds its title in CSV."""
    if ending == ".csv":
        title = Table("", [Column("", name=table.title)], []).to_csv() if titled and table.title else ""
        return title + table.to_csv()
    title = f"**{_as_markdown(table.title)}**\n\n" if table.title else ""
    return title + "\n\n".join([table.to_markdown().rstrip("\n"), *map(_as_markdown, table.notes)]) + "\n"


def between(page: str, mark: str, text: str) -> str:
    """Replace the text between the lines `<!-- mark: begin -->` and `<!-- mark: end -->` of a Markdown page."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + text + end + after


def _values(cell: str) -> Mapping[str, str]:
    """Return what CSV writes for a cell, by the text appended to the column's heading."""
    if isinstance(cell, Number):
        return {end: format(value, ".15g") for end, value in cell.values.items()}  # 55.3, not 55.300000000000004
    text = cell.replace("\r\n", "\n").replace("\r", "\n")  # the csv module does not quote a lone \r
    return {"": text} if text else {}


def _as_markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.splitlines()))


def _as_html(text: str) -> str:
    return escape(text).replace("\n", "<br>")
