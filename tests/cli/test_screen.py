"""Progress where stderr is a file or a pipe."""

import pytest
from rich.console import Group
from rich.text import Text

from foveate.cli.screen import Lines, counting, show
from foveate.plain.table import Table


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


def lines_of(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_line_at_the_start_every_thirty_seconds_and_at_the_end(capsys):
    clock = Clock()
    lines = Lines("Answering", 1000, clock)
    assert lines_of(capsys) == ["foveate: Answering: 1000 to do"]
    said = []
    for _ in range(1000):
        clock.seconds += 1
        lines.add(1)
        said += lines_of(capsys)
    assert len(said) == 33
    assert said[0] == "foveate: Answering: 30 of 1000 (3%), 0:16:10 left"
    lines.end()
    assert lines_of(capsys) == ["foveate: Answering: 1000 done in 0:16:40"]


def test_a_run_that_fails_is_not_said_to_have_ended(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), counting("Answering", 600):
        interrupt()
    assert lines_of(capsys) == ["foveate: Answering: 600 to do"]


def test_no_cell_is_cut_where_there_is_no_edge(capsys):
    wide = ["cell " + str(number) * 30 for number in range(6)]
    show(Group(Table("", [""] * 6, [wide]), Text("a line")))
    said = capsys.readouterr().out
    assert [cell for cell in wide if cell not in said] == []
