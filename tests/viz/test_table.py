"""A table of text: plain, as HTML, for rich and in files."""

import csv
from html.parser import HTMLParser
from io import StringIO

import pytest
from hypothesis import given, strategies as st
from rich.console import Console

from foveate.plain.table import between, in_file, number
from foveate.viz import SECTION, Column, Number, Table

SPEED = Table("Speed", ["", Column("ms", right=True)], [("full model", "12.5"), ("v2drop", "6.1")], ["Median of 30."])


def printed(renderable, width=80):
    console = Console(file=StringIO(), width=width, force_terminal=False)
    console.print(renderable)
    return console.file.getvalue()


def cells_of(html):
    """Every piece of text in the HTML, in order."""
    pieces = []
    parser = HTMLParser()
    parser.handle_data = pieces.append
    parser.feed(html)
    return pieces


def test_plain_text_is_aligned():
    title, heads, _, full, v2drop, note = [line for line in str(SPEED).split("\n") if line.strip()]
    assert (title, note) == ("Speed", "Median of 30.")
    assert heads.split() == ["ms"]
    assert full.split() == ["full", "model", "12.5"]
    assert len(heads) == len(full) == len(v2drop)  # numbers end at the same column


def test_markdown_has_no_column_without_text():
    sheet = Table("", ["", "none", Column("ms", right=True)], [("full", "", "1"), SECTION, ("v2drop",)])
    assert sheet.without_empty().to_markdown() == "|  | ms |\n| --- | ---: |\n| full | 1 |\n| v2drop |  |\n"


def test_a_cell_of_several_lines_makes_a_taller_row():
    sheet = Table("", ["a", "b"], [("1.02\n[0.98–1.06]", "x"), ("y", "z")])
    lines = [line.split() for line in sheet.to_text().split("\n")]
    assert lines[-3:] == [["1.02", "x"], ["[0.98–1.06]"], ["y", "z"]]
    assert "1.02<br>[0.98–1.06]" in sheet.to_html()


def test_a_long_cell_is_wrapped_where_that_is_allowed():
    sheet = Table("", ["name", Column("answer", wrap=True)], [("a long name", "one two three four five")])
    lines = sheet.to_text(32).split("\n")
    assert [line.strip() for line in lines[-2:]] == ["a long name   one two three", "four five"]


def test_html_is_escaped():
    sheet = Table("a < b", ["<h>"], [("<b>&amp;</b>",)], ["<script>alert(1)</script>"])
    html = sheet._repr_html_()
    assert cells_of(html) == ["a < b", "<h>", "<b>&amp;</b>", "<script>alert(1)</script>"]
    assert "<script>" not in html


def test_rich_reads_no_markup():
    sheet = Table("[bold]t[/]", ["[red]h"], [("[bold]cell[/bold]",)], ["[i]note[/i]", "[/x]"])
    text = printed(sheet)
    for said in ("[bold]t[/]", "[red]h", "[bold]cell[/bold]", "[i]note[/i]", "[/x]"):
        assert said in text


def test_rich_shows_the_title_the_table_and_notes_as_wide_as_the_console():
    note = "a note that is longer than the table " * 2
    text = printed(Table("Title", ["a", "b"], [("1", "2"), SECTION, ("3", "4")], [note.strip()]))
    assert note.strip() in text
    assert "Title" in text
    assert note.strip() not in printed(Table("Title", ["a"], [("1",)], [note]).to_rich())


def test_an_empty_sheet_shows_what_it_has():
    empty = Table("", [], [])
    assert str(empty) == ""
    assert cells_of(empty.to_html()) == []
    assert printed(empty).strip() == ""
    assert str(Table("t", ["a"], [])).split() == ["t", "a", "───"]


def test_a_row_with_too_many_cells_is_refused():
    with pytest.raises(ValueError, match="2 cells"):
        Table("", ["a"], [("1", "2")])


def test_text_between_two_marks_is_replaced_and_a_page_without_them_refused():
    page = "a\n<!-- b: begin -->\n<!-- b: end -->\n<!-- c: begin -->\nold\n<!-- c: end -->\nd\n"
    for text in ("", "x\n", "y\n"):
        page = between(page, "b", text)
        assert page == f"a\n<!-- b: begin -->\n{text}<!-- b: end -->\n<!-- c: begin -->\nold\n<!-- c: end -->\nd\n"
    with pytest.raises(ValueError, match="unpack"):
        between(page, "e", "")


# -- files ----------------------------------------------------------------------------------------------------

WILD = r"""50 % & $x_1$ #2 {a} ~b ^c \d | *e* `f` <image> &amp; [g](h) "i" 'j' https://k"""
"""A cell that every format has something to say against."""

ACCURACY = Table(
    "Accuracy",
    ["", Column("Accuracy", right=True), Column("", name="verdict"), Column("FLOPs", right=True)],
    [
        ("full model", Number("61.4 ± 2.1", {"": 61.3636363636, "low": 59.3, "high": 63.5}), "", number(1, ".0%")),
        SECTION,
        ("v2drop", Number("-1.0 ± 0.2", {"": -1.0, "low": -1.1, "high": -0.9}), "worse", number(0.123456, ".0%")),
        ("[odd]", "infeasible", "two\nlines", "not counted"),
    ],
    ["A note | of | pipes."],
)


def read_csv(text):
    return list(csv.reader(StringIO(text, newline="")))


def test_csv_has_numbers_as_they_are_and_a_column_for_each_end_of_an_interval():
    head, full, v2drop, odd = read_csv(in_file([ACCURACY], ".csv"))
    assert head == ["name", "Accuracy", "Accuracy low", "Accuracy high", "verdict", "FLOPs %", "FLOPs"]
    assert full == ["full model", "61.3636363636", "59.3", "63.5", "", "100", ""]
    assert v2drop == ["v2drop", "-1", "-1.1", "-0.9", "worse", "12.3456", ""]
    assert odd == ["[odd]", "infeasible", "", "", "two\nlines", "", "not counted"]
    assert read_csv(Table("", ["a"], [("1\r2\r\n3",)]).to_csv()) == [["a"], ["1\n2\n3"]]


@given(st.lists(st.tuples(st.text(st.characters(exclude_characters="\r")), st.floats(-1e300, 1e300)), max_size=4))
def test_any_text_and_number_is_read_back_from_csv(rows):
    table = Table("", ["", "number"], [(text, number(value, ".1f")) for text, value in rows])
    _, *read = read_csv(table.to_csv())
    assert [text for text, _ in read] == [text for text, _ in rows]
    assert [float(value) for _, value in read] == pytest.approx([value for _, value in rows], rel=1e-14)


def test_several_tables_of_csv_stand_apart_under_their_titles():
    rows = read_csv(in_file([SPEED, Table("", ["a"], [("1",)])], ".csv"))
    assert rows == [["Speed"], ["name", "ms"], ["full model", "12.5"], ["v2drop", "6.1"], [], ["a"], ["1"]]


def test_cells_may_be_markdown_themselves():
    assert Table("", ["a"], [("`b`",)]).to_markdown(escape=False) == "| a |\n| --- |\n| `b` |\n"
