"""The folder: who may use it, what it refuses, and that no moment in which a run is killed costs or doubles a row."""

import os
import signal
from dataclasses import replace

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.runs.listener import Listener
from foveate.runs.store import SYNC, Numbers, open_store
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import Echo
from tests.forked import full_disk


@pytest.fixture
def job(asking, questions, tmp_path):
    """A job of 40 rows, five of them without a picture's name, in parts of about eight."""
    path = questions(40)
    lines = path.read_text().splitlines()
    lines[::9] = ["nonsense"] * len(lines[::9])
    path.write_text("\n".join(lines) + "\n")
    return Job(input=path, out=tmp_path / "out", asking=replace(asking, batch_size=1), part_rows=8)


def whole(out):
    """Whether every row is there once."""
    rows, bad = rows_in(out), bad_in(out)
    assert not set(rows) & set(bad)
    return set(bad) == set(range(0, 40, 9)) and {*rows, *bad} == set(range(40))


def test_every_row_is_in_a_part_or_among_the_bad_ones(job):
    summary = run(job, Echo())
    assert whole(job.out)
    assert (summary.rows, summary.answered, summary.bad, summary.left, summary.asked) == (40, 35, 5, 0, 40)
    assert (summary.parts, summary.retention, summary.vision_tokens) == (5, 0.5, 576)
    parts = {f"part-{number:05}.jsonl" for number in range(5)}
    assert {path.name for path in job.out.iterdir()} == {"manifest.json", "broken.jsonl", ".lock", ".rows", *parts}
    assert bad_in(job.out)[9]["reason"].startswith("The line is not valid JSON")
    row = rows_in(job.out)[1]
    assert row == {
        "row": 1, "id": "row 1", "image": row["image"], "question": row["answer"], "answer": row["answer"],
        "retention": 0.5, "vision_tokens": 576, "tokens": 288.0, "new_tokens": 3, "notes": [],
    }  # fmt: skip


def test_rows_are_on_the_disk_after_some_seconds_and_not_after_each(tmp_path, monkeypatch):
    synced, now = [], [100.0]
    monkeypatch.setattr("foveate.runs.store.os.fsync", synced.append)
    monkeypatch.setattr("foveate.runs.store.time.monotonic", lambda: now[0])
    with open_store(tmp_path / "run", "row") as store:
        store.add([{"row": 0}])
        begun = len(synced)
        now[0] += SYNC - 0.1
        store.add([{"row": 1}])
        assert len(synced) == begun
        now[0] += 0.2
        store.add([{"row": 2}])
        assert len(synced) == begun + 1


class Stopping(Listener):
    """Stops a run after so many rows."""

    def __init__(self, after):
        self.left = after

    def stage(self, doing, total, done=0):
        self.begun = total, done
        return super().stage(doing, total, done)

    def stopped(self):
        self.left -= 1
        return self.left < 0


def test_a_run_that_is_stopped_writes_what_it_has_and_goes_on_there(job):
    summary = run(replace(job, part_rows=1000), Echo(), Stopping(after=2))
    assert (summary.asked, summary.left, summary.parts) == (24, 16, 1)
    listener = Stopping(after=10**6)
    summary = run(job, Echo(), listener)
    assert listener.begun == (16, 24)
    assert (summary.asked, summary.left) == (16, 0)
    assert whole(job.out)


def test_rows_are_in_the_folder_as_they_come(job):
    seen = []

    def look(chunk):
        seen.append(len(rows_in(job.out)) + len(bad_in(job.out)))

    run(replace(job, part_rows=1000), Echo(look))
    assert seen == [0, 8, 16, 24, 32]


# Killed


# Tests have one thread of torch; pytest-xdist has threads that the child never meets.
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
POINTS = ("fsync", "replace", "open", "unlink", "chmod", "write")


def killed_at(point, work):
    """Whether a process that does this work is killed at its n-th point: before and after each change of the disk."""
    child = os.fork()
    if child == 0:
        left = [point]

        def deadly(function):
            def call(*arguments, **options):
                for now in (True, False):
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)
                    if now:
                        result = function(*arguments, **options)
                return result

            return call

        code = 1
        try:
            for name in POINTS:
                setattr(os, name, deadly(getattr(os, name)))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@FORKS
def test_no_moment_in_which_a_run_is_killed_loses_or_doubles_a_row(job):
    """Every moment: before and after each time that a file is opened, forced to the disk, renamed or removed."""
    point = 0
    while True:
        at_this_point = replace(job, out=job.out.with_name(f"out-{point}"))
        if not killed_at(point, lambda at_this_point=at_this_point: run(at_this_point, Echo())):
            break
        run(at_this_point, Echo())
        assert whole(at_this_point.out)
        assert not list(at_this_point.out.glob(".foveate-*"))
        point += 1
    assert point > 40


# Processes that die


class Dying(Echo):
    """Gives no result for a chunk with one of these rows, as where a process has died."""

    def __init__(self, *rows):
        super().__init__()
        self.rows, self.chunks = rows, []

    def work(self, items, stopped):
        for chunk in items:
            self.chunks.append([one.number for one in chunk])
            if set(self.rows) & set(self.chunks[-1]):
                yield chunk, None
            else:
                yield from super().work([chunk], lambda: False)
            if stopped():
                return


def test_rows_whose_process_has_died_are_asked_alone_and_then_given_up(job):
    dying = Dying(11, 12)
    summary = run(job, dying)
    assert dying.chunks[5:] == [[number] for number in range(8, 16)]
    assert (summary.rows, summary.answered, summary.bad, summary.left, summary.asked) == (40, 33, 7, 0, 40)
    bad = bad_in(job.out)
    assert sorted({*bad, *rows_in(job.out)}) == list(range(40))
    assert [number for number, row in bad.items() if "died, even alone" in row["reason"]] == [11, 12]
    assert bad[11]["id"] == "row 11"
    assert bad[11]["question"]


def test_a_run_that_is_stopped_gives_up_no_row(job):
    run(job, Dying(11), Stopping(after=3))
    assert set(bad_in(job.out)) == {0, 18, 27}
    summary = run(job, Dying(11), Stopping(after=4))
    assert (summary.asked, summary.left) == (10, 6)  # row 8 and 9 alone, and not yet row 11
    run(job, Echo())
    assert whole(job.out)


def test_processes_that_die_whatever_they_are_asked_make_no_row_bad(job):
    for _ in range(2):
        with pytest.raises(fv.InputError, match="Processes die on every question"):
            run(job, Dying(*range(40)))
    assert bad_in(job.out) == {}
    run(job, Echo())
    assert whole(job.out)


CRASHED = [("3 3\nFatal Python error: Aborted\n", [3]), ("2 4\nFatal Python error: Aborted\n", []), ("3 3\n", [])]


@pytest.mark.parametrize(("text", "given_up"), [*CRASHED, ("", []), ("nonsense\n\0", []), ("3\nx", [])])
def test_only_a_row_that_has_crashed_alone_is_given_up(job, text, given_up):
    run(replace(job, part_rows=1), Echo(), Stopping(after=0))
    for part in job.out.glob("part-*"):
        part.unlink()
    (job.out / ".in-hand").write_text(text)
    asked = Dying()
    run(job, asked)
    assert [number for number, row in bad_in(job.out).items() if "died" in row["reason"]] == given_up
    alone = [[1], [2], [3], [4]] if text.startswith("2 4") else []  # row 0 is done: it is among the bad ones
    assert [chunk for chunk in asked.chunks if len(chunk) == 1] == alone
    run(job, Echo())  # the row is done: what the file says counts no more
    assert {*rows_in(job.out), *bad_in(job.out)} == set(range(40))


# Refused


CHANGES = [
    ({"max_new_tokens": 5}, "other settings: max_new_tokens was 4, and is 5"),
    ({"model": "elsewhere"}, "other settings: model was '.*', and is 'elsewhere'"),
    ({"method": None}, "other settings: method was "),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_other_settings_are_refused(job, change, said):
    run(job, Echo(), Stopping(after=1))
    with pytest.raises(fv.InputError, match=rf"was begun with {said}"):
        run(replace(job, asking=replace(job.asking, **change)), Echo())
    with pytest.raises(fv.InputError, match="other settings: question was None, and is 'What"):
        run(replace(job, question="What?"), Echo())
    with pytest.raises(fv.InputError, match="other settings: parts was 'jsonl', and is 'parquet'"):
        run(replace(job, parts="parquet"), Echo())


def test_another_input_or_model_is_refused_and_the_size_of_batches_is_not(job):
    run(job, Echo(), Stopping(after=1))
    with pytest.raises(fv.InputError, match="another model or other versions: weights was 'echo', and is 'other'"):
        run(job, Echo(model="other"))
    text = job.input.read_text()
    job.input.write_text(text.replace("row 1", "line 1"))
    with pytest.raises(fv.InputError, match=r"begun with another input: .* gone: row 1, row 10, row 11 and"):
        run(job, Echo())
    job.input.write_text(text)
    run(replace(job, asking=replace(job.asking, batch_size=3), part_rows=5), Echo())
    assert whole(job.out)


def test_a_folder_with_other_files_is_refused_and_left_alone(job):
    job.out.mkdir()
    (job.out / "mine.txt").write_text("mine")
    with pytest.raises(fv.InputError, match=r"not empty and holds no run: there is 'mine\.txt'"):
        run(job, Echo())
    assert (job.out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "foveate batch 9", "rows": 3}', "\x00" * 90])
def test_a_damaged_manifest_is_refused(job, text):
    run(job, Echo())
    (job.out / "manifest.json").write_text(text)
    with pytest.raises(fv.InputError, match=r"manifest\.json is damaged, or of another version"):
        run(job, Echo())


@pytest.mark.parametrize("line", ['{"row": 3}', '{"row": 40}', '{"row": -1}', '{"row": "3"}', '{"row": [3]}'])
def test_a_part_that_was_copied_into_the_folder_is_refused(job, line):
    run(job, Echo())
    (job.out / "part-00007.jsonl").write_text(line + "\n")
    with pytest.raises(fv.InputError, match="does not belong here"):
        run(job, Echo())


def test_a_file_in_the_place_of_the_folder_is_refused(job):
    job.out.write_text("mine")
    with pytest.raises(fv.InputError, match="out cannot be used: "):
        run(job, Echo())


def test_answers_do_not_go_among_the_pictures(job, pictures):
    for out in (pictures, pictures / "new"):
        with pytest.raises(fv.InputError, match="its files would be rows too"):
            run(replace(job, input=pictures, out=out, question="What?"), Echo())


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_full_disk_is_one_error_and_the_run_can_go_on(job, kind):
    job = replace(job, parts=kind)
    run(job, Echo(), Stopping(after=1))
    with (
        full_disk(500),
        pytest.raises(fv.InputError, match=r"File too large.*Free some space, and run again: nothing"),
    ):
        run(job, Echo())
    summary = run(job, Echo())
    assert (summary.answered, summary.bad, summary.left) == (35, 5, 0)
    assert kind == "parquet" or whole(job.out)
    assert set(bad_in(job.out)) == set(range(0, 40, 9))


@pytest.mark.parametrize("name", ["broken.jsonl", "part-00002.jsonl"])
def test_lines_that_are_damaged_are_taken_out_and_asked_again(job, name):
    run(job, Echo())
    path = job.out / name
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([first[:9] + b"\xff\0" + first[9:], *others, b'{"row": 3, "id": nu']))
    summary = run(job, Echo())
    assert (summary.asked, summary.left) == (1, 0)
    assert whole(job.out)


def test_a_setting_may_change_as_long_as_nothing_is_answered(job):
    class Fails(Echo):
        def about(self):
            raise fv.InputError("no such model")

    with pytest.raises(fv.InputError, match="no such model"):
        run(job, Fails())
    run(replace(job, asking=replace(job.asking, max_new_tokens=9)), Echo())
    assert whole(job.out)


@FORKS
def test_a_parquet_run_that_is_killed_anywhere_ends_with_every_row_once(job):
    import pyarrow.parquet

    job = replace(job, parts="parquet")
    for times in range(1000):
        if not killed_at(30 + times % 23, lambda: run(job, Echo())):
            break
    assert times > 2
    numbers = [n for part in job.out.glob("part-*") for n in pyarrow.parquet.read_table(part)["row"].to_pylist()]
    assert sorted([*numbers, *bad_in(job.out)]) == list(range(40))


def test_a_store_knows_what_it_has_and_goes_on_in_the_part_that_is_open(tmp_path):
    for numbers in ((9, 2, 3), (7, 8)):
        with open_store(tmp_path, "row", part_rows=4) as kept:
            kept.require("of", "numbers", "other things")
            before = [row["row"] for row in kept.read(Numbers(10))]
            kept.add([{"row": number} for number in numbers])
            assert [number for number in range(10) if number in kept.done] == sorted([*before, *numbers])
    assert [len(path.read_text().splitlines()) for path in kept.parts()] == [4, 1]
    with open_store(tmp_path, "row") as kept:
        assert [row["row"] for row in kept.read(set())] == [9, 2, 3, 7, 8]
        assert len(kept.done) == 5
