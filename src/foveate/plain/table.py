"""`Table`: a small table of text that a terminal, a notebook and a report can show, and files can hold."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Literal

from foveate.plain.writing import encodable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.table import Table as RichTable

SECTION: tuple[str, ...] = ()
"""A row without cells: a gap between the rows above and below it."""

WIDTH = 120  # columns of plain text
WIDEST = 10_000  # columns of a page that cuts nothing off

ENDINGS = (".csv", ".md", ".tex")
"""Of files that hold tables."""

LINE = "1px solid rgba(128, 128, 128, 0.5)"  # grey reads on a white page and on a dark one
CELL = "padding: 2px 10px; vertical-align: top"

MARKDOWN = re.compile(r"[\\`*_|~]|<(?=[a-zA-Z/!?])|&(?=[#\w]+;)|(?<=\])\(")
"""What Markdown would read as markup in a cell."""
LATEX = str.maketrans(
    {letter: f"\\{letter}" for letter in "&%$#_{}"}
    | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other letters in LaTeX's usual fonts
    | {"±": r"$\pm$", "×": r"$\times$", "÷": r"$\div$", "−": "$-$", "√": r"$\surd$", "≥": r"$\ge$", "≤": r"$\le$"}
    | {"→": r"$\to$", "↓": r"$\downarrow$", "–": "--", "“": "``", "”": "''", "…": r"\ldots{}"}
)
"""What LaTeX reads as commands, and what stands in our own cells and pdfLaTeX does not know."""


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a column, and how its cells are laid out.

    Attributes:
        head: What stands above it.
        right: Whether cells are aligned to the right, as numbers are.
        wrap: Whether a cell that is too long for the page goes on in a next line.
        name: What CSV calls it where `head` is "".
    """

    head: str
    right: bool = False
    wrap: bool = False
    name: str = "name"

    @property
    def justify(self) -> Literal["left", "right"]:
        """To which side its cells are aligned."""
        if self.right:
            return "right"
        return "left"


class Number(str):
    """A cell that shows numbers: rounded in its text, and as they are for programs that read a file.

        Number("61.4 ± 2.1", {"": 61.36, "low": 59.3, "high": 63.5})

    Attributes:
        values: Each number by what CSV writes behind the column's head: "", "low", or a unit such as "%".
    """

    __slots__ = ("values",)

    values: Mapping[str, float]

    def __new__(cls, text: str, values: Mapping[str, float] | None = None) -> "Number":
        cell = super().__new__(cls, text)
        cell.values = values or {}  # copy and pickle bring them later
        return cell


class Table:
    """A small table of text. Text is shown as it is: no markup of HTML or rich in it is read.

        Table("Speed", ["", Column("ms", right=True)], [("full", "12.5"), ("v2drop", "6.1")], ["Median of 30."])

    `str(table)` is plain text, a notebook shows a table, and `rich.print(table)` one with its notes.

    Attributes:
        title: The line above; "" for none.
        columns: One a column.
        rows: Cells from left to right, "" where a row has fewer than there are columns; `SECTION` is a gap. A cell may
            have several lines, or be a `Number`.
        notes: Lines below.
    """

    def __init__(
        self, title: str, heads: Sequence[str | Column], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
    ) -> None:
        """Make a table; a head may be given as a string.

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

    def filled(self, without: Sequence[str] = ()) -> "Table":
        """This table without the columns that have no text in any row, and without those of these heads."""
        kept = [
            place
            for place, column in enumerate(self.columns)
            if column.head not in without and any(row and row[place] for row in self.rows)
        ]
        rows = [[row[place] for place in kept] if row else SECTION for row in self.rows]
        return Table(self.title, [self.columns[place] for place in kept], rows, self.notes)

    def noted(self, notes: Sequence[str]) -> "Table":
        """This table with these lines below it."""
        return Table(self.title, self.columns, self.rows, notes)

    def __repr__(self) -> str:
        filled = [row for row in self.rows if row]
        return f"Table({self.title!r}, {len(self.columns)} columns, {len(filled)} rows)"

    def to_text(self, width: int = WIDTH) -> str:
        """What rich prints on a page without colours; wider than `width` where no column may be wrapped."""
        from rich.console import Console

        console = Console(file=StringIO(), color_system=None, width=WIDEST)
        needed = console.measure(self).minimum
        console.print(self, width=max(width, needed), crop=False)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        return "\n".join(line.rstrip() for line in lines).strip("\n")

    __str__ = to_text

    def to_csv(self) -> str:
        """The table as CSV, without its title, notes and gaps; a column of `Number`s becomes one column a value."""
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
        """The table as Markdown, without its title and notes; a gap between rows is left out.

        Args:
            escape: Whether cells are text; else they are Markdown.
        """
        marks = {"left": "---", "right": "---:"}
        lines = [[column.head for column in self.columns], *(row for row in self.rows if row)]
        if escape:
            lines = [[_as_markdown(cell) for cell in line] for line in lines]
        lines.insert(1, [marks[column.justify] for column in self.columns])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def to_latex(self) -> str:
        """The table as a tabular of plain LaTeX, without its title and notes."""
        lines = [rf"\begin{{tabular}}{{{''.join(column.justify[0] for column in self.columns)}}}"]
        heads = [column.head for column in self.columns]
        for row in (heads, SECTION, *self.rows):
            lines.append(rf"{' & '.join(map(_as_latex, row))} \\" if row else r"\hline")
        return "\n".join([*lines, r"\end{tabular}", ""])

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

    _repr_html_ = to_html

    def to_rich(self) -> "RichTable":
        """The table for a rich console, without its notes."""
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
        """How wide the table is; where no column may be wrapped, it is never narrower."""
        measured = console.measure(self.to_rich(), options=options)
        if any(column.wrap for column in self.columns):
            return measured
        return measured.with_minimum(measured.maximum)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[RenderableType]":
        """What rich prints: the table, and the notes below it as wide as the console."""
        from rich.text import Text

        yield self.to_rich()
        for note in self.notes:
            yield Text(note)


def number(value: float, form: str) -> Number:
    """A cell with one number, as `format` writes it; CSV has shares in hundredths where the form ends in "%"."""
    if form.endswith("%"):
        values = {"%": 100 * value}
    else:
        values = {"": value}
    return Number(format(value, form), values)


def in_file(tables: Sequence[Table], ending: str) -> str:
    """Tables as the text of a file, with an empty line between them.

    Args:
        tables: With notes and titles, which CSV has none of, except for titles of several tables.
        ending: Of the file's name, one of `ENDINGS`.
    """
    return "\n".join(_text_of(table, ending, len(tables) > 1) for table in tables)


def _text_of(table: Table, ending: str, titled: bool) -> str:
    """One table of a file; `titled` says whether CSV has its title."""
    if ending == ".csv":
        title = Table("", [Column("", name=table.title)], []).to_csv() if titled and table.title else ""
        return title + table.to_csv()
    if ending == ".md":
        title = f"**{_as_markdown(table.title)}**\n\n" if table.title else ""
        return title + "\n\n".join([table.to_markdown().rstrip("\n"), *map(_as_markdown, table.notes)]) + "\n"
    comments = "\n".join([table.title, *table.notes]).strip("\n").splitlines()
    return "".join(f"% {line}\n" for line in comments) + table.to_latex()


def between(page: str, mark: str, text: str) -> str:
    """A page of Markdown with this text between its lines `<!-- mark: begin -->` and `<!-- mark: end -->`."""
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return before + begin + text + end + after


def _values(cell: str) -> Mapping[str, str]:
    """What CSV writes of a cell, by the end of its column's head."""
    if isinstance(cell, Number):
        return {end: format(value, ".15g") for end, value in cell.values.items()}  # 55.3, not 55.300000000000004
    text = cell.replace("\r\n", "\n").replace("\r", "\n")  # the csv module does not quote a lone \r
    return {"": text} if text else {}


def _as_markdown(text: str) -> str:
    return MARKDOWN.sub(r"\\\g<0>", " ".join(text.splitlines()))


def _as_latex(cell: str) -> str:
    text = " ".join(cell.splitlines()).translate(LATEX)
    if isinstance(cell, Number):
        text = re.sub(r"(?<![-$])-(?![-$])", "$-$", text)
    return f"{{}}{text}" if text.startswith(("[", "*")) else text  # behind the last row's \\ they are arguments


def _as_html(text: str) -> str:
    return escape(text).replace("\n", "<br>")
