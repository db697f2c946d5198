"""A table of text: plain, as HTML and for rich."""

from html.parser import HTMLParser
from io import StringIO

import pytest
from rich.console import Console

from foveate._table import between
from foveate.viz import SECTION, Column, Table

SPEED = Table(
    "Speed",
    ["", Column("ms", right=True)],
    [("full model", "12.5"), ("v2drop", "6.1")],
    ["Median of 30."],
)


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
    assert sheet.filled().to_markdown() == "|  | ms |\n| --- | ---: |\n| full | 1 |\n| v2drop |  |\n"


def test_a_cell_of_several_lines_makes_a_taller_row():
    sheet = Table("", ["a", "b"], [("1.02\n[0.98–1.06]", "x"), ("y", "z")])
    lines = [line.split() for line in sheet.to_text().split("\n")]
    assert lines[-3:] == [["1.02", "x"], ["[0.98–1.06]"], ["y", "z"]]
    assert "1.02<br>[0.98–1.06]" in sheet.to_html()


def test_a_section_is_a_gap_and_short_rows_are_filled():
    sheet = Table("", ["a", "b"], [("1",), SECTION, ("2", "3")])
    assert [line.split() for line in sheet.to_text().split("\n")][-3:] == [["1"], [], ["2", "3"]]
    assert sheet.rows == (("1", ""), SECTION, ("2", "3"))
    assert sheet.to_html().count("border-top") == 2  # the two cells below the gap


def test_a_long_cell_is_wrapped_where_that_is_allowed():
    sheet = Table("", ["name", Column("answer", wrap=True)], [("a long name", "one two three four five")])
    lines = sheet.to_text(32).split("\n")
    assert [line.strip() for line in lines[-2:]] == ["a long name   one two three", "four five"]


def test_where_no_column_may_be_wrapped_nothing_is_cut_off():
    text = Table("", ["a", "b"], [("x" * 30, "y" * 10)], ["a note of six words here"]).to_text(20)
    assert "x" * 30 in text
    assert "y" * 10 in text


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


def test_rich_columns_are_aligned_and_wrapped_as_asked():
    table = Table("", [Column("a", right=True), Column("b", wrap=True)], [("1", "2")]).to_rich()
    assert [column.justify for column in table.columns] == ["right", "left"]
    assert [column.no_wrap for column in table.columns] == [True, False]


def test_an_empty_sheet_shows_what_it_has():
    empty = Table("", [], [])
    assert str(empty) == ""
    assert cells_of(empty.to_html()) == []
    assert printed(empty).strip() == ""
    assert str(Table("t", ["a"], [])).split() == ["t", "a", "───"]


def test_a_row_with_too_many_cells_is_refused():
    with pytest.raises(ValueError, match="A row has 2 cells, but the table has 1 columns"):
        Table("", ["a"], [("1", "2")])


def test_text_between_two_marks_is_replaced_and_a_page_without_them_refused():
    page = "a\n<!-- b: begin -->\n<!-- b: end -->\n<!-- c: begin -->\nold\n<!-- c: end -->\nd\n"
    for text in ("", "x\n", "y\n"):
        page = between(page, "b", text)
        assert page == f"a\n<!-- b: begin -->\n{text}<!-- b: end -->\n<!-- c: begin -->\nold\n<!-- c: end -->\nd\n"
    with pytest.raises(ValueError, match="unpack"):
        between(page, "e", "")
