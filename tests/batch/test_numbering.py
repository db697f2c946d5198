"""A job's input may grow: new rows are answered in the same job, and what has an answer may neither change nor go."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.rows import RowAsking
from foveate.runs.remote import Remote
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import Echo
from tests.batch.test_job import FORKS
from tests.forked import forked
from tests.runs.test_store import killed_at

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
            yield chunk, [{**row, "reason": "no picture"} if "bad" in str(row.get("id")) else row for row in rows]


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


def test_files_that_come_are_answered_in_the_same_job(folder):
    assert go(folder, limit=2)[0] == ["b.png", "d.png"]
    for name in ("a.png", "c.png", "sub/e.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    asked, summary = go(folder)
    assert sorted(asked) == ["a.png", "c.png", "f.png", "sub/e.png"]
    assert (summary.rows, summary.answered, summary.left, summary.retention) == (6, 6, 0, 0.5)
    numbers = numbers_in(folder.with_name("out"))
    assert sorted(numbers.values()) == list(range(6))
    assert [numbers[name] for name in ("b.png", "d.png", "f.png")] == [0, 1, 2]
    (folder / "0.png").write_text("0")
    assert go(folder)[0] == ["0.png"]
    assert go(folder)[0] == []


@pytest.mark.parametrize(("name", "text", "said"), [("b.png", "x", "changed: b.png"), ("d.png", None, "gone: d.png")])
def test_files_with_an_answer_that_change_or_go_are_named(folder, name, text, said):
    go(folder)
    (folder / "new.png").write_text("new")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    for _ in range(2):
        with pytest.raises(fv.InputError, match=f"another input: .*{said}\\."):
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
    (folder / "f.png").write_text("f")
    assert go(folder)[0] == ["f.png"]
    assert sorted(rows_in(folder.with_name("out")) | bad_in(folder.with_name("out"))) == list(range(5))


def test_a_broken_line_that_is_mended_keeps_its_number(tmp_path):
    path = tmp_path / "in.jsonl"
    lines = [json.dumps(row) for row in table("a", "b", "c")]
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    assert go(path)[1].bad == 1
    jsonl(path, table("new", "a", "b", "c"))
    asked, summary = go(path)
    assert asked == ["new", "b"]
    assert (summary.rows, summary.answered, summary.bad) == (4, 4, 0)
    assert sorted(numbers_in(tmp_path / "out").values()) == [0, 1, 2, 3]


def test_rows_without_ids_that_came_behind_one_that_went_stay_known(tmp_path):
    path, rows = tmp_path / "in.jsonl", [{"image": f"{number}.png", "question": "What?"} for number in range(4)]
    jsonl(path, rows[:3])
    go(path, limit=2)
    for left, counts in ((rows[:2], (3, 2)), (rows[:2] + rows[3:], (3, 3)), (rows[:2] + rows[3:], (3, 3))):
        jsonl(path, left)
        summary = go(path)[1]
        assert (summary.rows, summary.answered) == counts


def test_a_question_behind_a_url_counts_whole(tmp_path):
    path, remote = tmp_path / "in.jsonl", replace(ASKING, remote=Remote())
    row = {"id": "a", "image": "a.png", "question": "https://a.example/?page=1 What is it?"}
    jsonl(path, [row])
    echo = Counting()
    run(Job(input=path, out=tmp_path / "out", asking=remote), echo)
    jsonl(path, [row | {"question": row["question"].replace("=1", "=2")}])
    with pytest.raises(fv.InputError, match="changed: a"):
        run(Job(input=path, out=tmp_path / "out", asking=remote), echo)


def jsonl(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def csv(path, rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))


def parquet(path, rows):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    pyarrow.write_table(pytest.importorskip("pyarrow").Table.from_pylist(rows), path)


def table(*ids, **columns):
    return [{"id": name, "image": f"{name}.png", "question": f"What {name}?"} | columns for name in ids]


@pytest.mark.parametrize("write", [jsonl, csv, parquet])
def test_rows_of_a_table_that_come_anywhere_are_answered_in_the_same_job(tmp_path, write):
    path = tmp_path / f"in.{write.__name__}"
    write(path, table("a", "b", "c"))
    go(path, parts="jsonl", limit=2)
    write(path, table("new", "a", "c", "newer", "b", "last"))
    assert go(path, parts="jsonl", limit=4)[0] == ["new", "c"]
    asked, summary = go(path, parts="jsonl")
    assert asked == ["newer", "last"]
    assert (summary.rows, summary.answered, summary.left) == (6, 6, 0)
    numbers = numbers_in(tmp_path / "out")
    assert numbers == {"a": 0, "b": 1, "c": 2, "new": 3, "newer": 4, "last": 5}
    write(path, table("new", "a", "c", "newer", "b", "last")[1:])
    with pytest.raises(fv.InputError, match="gone: new"):
        go(path, parts="jsonl")
    write(path, table("new", "a", "c", "newer", "b", "last", question="Who?"))
    with pytest.raises(fv.InputError, match="changed: a, b, c and 3 more"):
        go(path, parts="jsonl")


def test_rows_without_ids_are_known_by_their_places(tmp_path):
    path = tmp_path / "in.jsonl"
    rows = [{"image": f"{number}.png", "question": "What?"} for number in range(4)]
    jsonl(path, rows[:2])
    go(path)
    jsonl(path, rows)
    assert go(path)[0] == ["2", "3"]
    jsonl(path, rows[::-1])
    with pytest.raises(fv.InputError, match="changed: row 0, row 1, row 2 and 1 more"):
        go(path)


def test_a_job_of_an_earlier_version_goes_on_or_is_refused(folder):
    go(folder, limit=1)
    out = folder.with_name("out")

    def as_before():
        manifest = json.loads((out / "manifest.json").read_text())
        del manifest["input"]["in order"]
        (out / "manifest.json").write_text(json.dumps(manifest))
        (out / ".rows").unlink()

    as_before()
    assert go(folder, limit=2)[0] == ["d.png"]
    as_before()
    (folder / "new.png").write_text("new")
    with pytest.raises(fv.InputError, match="earlier version"):
        go(folder)
    (folder / "new.png").unlink()
    assert go(folder)[0] == ["f.png"]
    (folder / "new.png").write_text("new")
    assert go(folder)[0] == ["new.png"]


@pytest.mark.parametrize("text", [None, "", '["b.png", "', "[1]\n"])
def test_a_list_of_rows_that_is_lost_or_damaged_numbers_no_row_anew(folder, text):
    go(folder, limit=1)
    (folder / "a.png").write_text("new")
    go(folder, limit=2)
    listed = folder.with_name("out") / ".rows"
    listed.unlink() if text is None else listed.write_text(text)
    with pytest.raises(fv.InputError, match="rows"):
        go(folder)


@FORKS
def test_no_moment_in_which_a_run_is_killed_loses_or_doubles_a_row_that_came(folder):
    (folder / "bad.png").write_text("bad")
    point, killed = 0, True
    while killed:
        job = Job(input=folder, out=folder.with_name(f"out-{point}"), asking=ASKING, question="What?")
        for name in ("a.png", "c.png", "bad.png"):
            (folder / name).unlink(missing_ok=True)
        (folder / "bad.png").write_text("bad")
        run(job, Counting())
        for name in ("a.png", "c.png", "bad.png"):
            (folder / name).write_text("more")
        killed = killed_at(point, lambda job=job: run(job, Counting()))
        run(job, Counting())
        assert sorted(rows_in(job.out) | bad_in(job.out)) == list(range(6))
        assert run(job, Counting()).asked == 0
        point += 6
    assert point > 20


SLOW = """
import sys, time
from pathlib import Path
from foveate.batch.job import Job, run
from tests.batch.places import Echo
from tests.batch.test_numbering import ASKING
folder = Path(sys.argv[1])
job = Job(input=folder, out=folder.with_name("out"), asking=ASKING, question="What?")
run(job, Echo(lambda chunk: time.sleep(0.02)))
"""


def test_a_process_that_is_killed_while_its_folder_grows_leaves_a_job_that_goes_on(folder):
    for number in range(90):
        (folder / f"{number}.png").write_text("first")
    out, come = folder.with_name("out"), 0
    process = forked(SLOW, folder, stderr=subprocess.PIPE)
    while not (out.is_dir() and any(out.glob("part-*"))):
        (folder / ".coming").write_text("came")
        (folder / ".coming").rename(folder / f"{come % 9} {come}.png")
        come += 1
        time.sleep(0.002)
        assert process.poll() is None or process.returncode == 0, process.stderr.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = len(rows_in(out))
    asked, summary = go(folder)
    assert (summary.rows, summary.answered, summary.left) == (93 + come, 93 + come, 0)
    assert 0 < before < 93 + come
    assert len(asked) == 93 + come - before
    assert sorted(numbers_in(out)) == sorted(os.listdir(folder))
