"""What came to a job's input, went or changed is named."""

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.rows import RowAsking
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import Echo

ASKING = RowAsking(model="m", batch_size=1)


class Counting(Echo):
    """Counts what it is asked, and cannot answer about names with "bad"."""

    def __init__(self):
        super().__init__(self._count)
        self.asked = []

    def _count(self, chunk):
        self.asked += [one.id for one in chunk]

    def work(self, items, stopped):
        for chunk, rows in super().work(items, stopped):
            yield chunk, [{**row, "reason": "no picture"} if "bad" in str(row["id"]) else row for row in rows]


@pytest.fixture
def folder(tmp_path):
    """A folder of files of which nothing is read but names, sizes and times."""
    (tmp_path / "pictures").mkdir()
    for name in ("b.png", "d.png", "f.png"):
        (tmp_path / "pictures" / name).write_text(name)
    return tmp_path / "pictures"


def go(path, **options):
    """Run a job about a file or folder: what it asked, and its summary."""
    echo = Counting()
    question = "What?" if path.is_dir() else None
    summary = run(Job(input=path, out=path.with_name("out"), asking=ASKING, question=question, **options), echo)
    return echo.asked, summary


def numbers_in(out):
    """The number of each id, of good rows and bad ones."""
    return {row["id"]: number for number, row in (rows_in(out) | bad_in(out)).items()}


@pytest.mark.parametrize(("name", "text", "said"), [("b.png", "x", "changed: b.png"), ("d.png", None, "gone: d.png")])
def test_files_with_an_answer_that_change_or_go_are_named(folder, name, text, said):
    go(folder)
    (folder / "new.png").write_text("new")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    for _ in range(2):
        with pytest.raises(fv.InputError, match=f"another input: .*{said}; new: new.png\\."):
            go(folder)
    assert len(numbers_in(folder.with_name("out"))) == 3


def test_files_without_an_answer_may_change_and_go(folder):
    for name in ("bad.png", "bad, too.png"):
        (folder / name).write_text("bad")
    assert go(folder, limit=3)[1].bad == 2
    (folder / "bad.png").write_text("better")
    (folder / "bad, too.png").unlink()
    (folder / "d.png").write_text("another size")
    (folder / "f.png").unlink()
    asked, summary = go(folder)
    assert asked == ["bad.png", "d.png"]
    assert (summary.rows, summary.answered, summary.bad, summary.left) == (5, 2, 3, 0)
