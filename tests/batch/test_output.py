"""The folder: who may use it, what it refuses, and that no moment in which a run is killed costs or doubles a row."""

import json
import os
import resource
import signal
from dataclasses import replace

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.listener import Listener
from foveate.batch.output import open_output
from foveate.batch.rows import Bad, Row
from tests.batch.conftest import bad_in, rows_in
from tests.batch.places import Echo, answered


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
    parts = {f"part-{first:010}-{first + 7:010}.jsonl" for first in range(0, 40, 8)}
    assert {path.name for path in job.out.iterdir()} == {"manifest.json", "bad.jsonl", ".lock", *parts}
    assert bad_in(job.out)[9]["reason"].startswith("The line is no JSON")
    assert rows_in(job.out)[1] == {
        "row": 1, "id": "row 1", "answer": rows_in(job.out)[1]["answer"], "retention": 0.5, "vision_tokens": 576,
        "tokens": 288.0, "new_tokens": 3, "notes": [],
    }  # fmt: skip


def test_what_is_done_is_not_asked_again(job):
    run(job, Echo())
    before = {path: path.stat().st_mtime_ns for path in job.out.iterdir() if path.name != ".lock"}

    class Nobody(Echo):
        def __enter__(self):
            raise AssertionError("a model is loaded")

    summary = run(job, Nobody())
    assert (summary.answered, summary.bad, summary.asked, summary.rate) == (35, 5, 0, None)
    assert before == {path: path.stat().st_mtime_ns for path in job.out.iterdir() if path.name != ".lock"}


class Stopping(Listener):
    """Stops a run after so many rows."""

    def __init__(self, after):
        self.left = after

    def answering(self, left, done):
        self.begun = left, done
        return super().answering(left, done)

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


def test_a_run_that_fails_writes_what_it_has(job):
    def fail(chunk):
        if chunk[0].number == 24:
            raise RuntimeError("the model is gone")

    with pytest.raises(RuntimeError, match="the model is gone"):
        run(replace(job, part_rows=1000), Echo(fail))
    assert set(rows_in(job.out)) | set(bad_in(job.out)) == set(range(24))


def test_a_part_is_written_every_minute(job, monkeypatch):
    monkeypatch.setattr("foveate.batch.job.PART_SECONDS", 0.0)
    run(replace(job, part_rows=1000), Echo())
    assert len(list(job.out.glob("part-*"))) == 5


# Killed


# Tests have one thread of torch; pytest-xdist has threads that the child never meets.
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
POINTS = ("fsync", "replace", "open", "unlink", "chmod")


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


@FORKS
def test_a_run_that_is_killed_again_and_again_ends(job):
    for times in range(1000):
        if not killed_at(30 + times % 23, lambda: run(job, Echo())):
            break
    assert times > 2
    assert whole(job.out)


# Processes that die


class Dying(Echo):
    """Gives no result for a chunk with one of these rows, as where a process has died."""

    def __init__(self, *rows):
        super().__init__()
        self.rows, self.chunks = rows, []

    def answered(self, chunks, stop):
        for chunk in chunks:
            self.chunks.append([row.number for row in chunk])
            if not set(self.rows) & set(self.chunks[-1]):
                yield from super().answered([chunk], lambda: False)
            if stop():
                return


def test_rows_whose_process_has_died_are_asked_alone_and_then_given_up(job):
    dying = Dying(11, 12)
    summary = run(job, dying)
    assert dying.chunks[5:] == [[number] for number in range(8, 16)]
    assert (summary.rows, summary.answered, summary.bad, summary.left, summary.asked) == (40, 33, 7, 0, 40)
    bad = bad_in(job.out)
    assert sorted({*bad, *rows_in(job.out)}) == list(range(40))
    assert [number for number, row in bad.items() if "died, alone too" in row["reason"]] == [11, 12]
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
        with pytest.raises(fv.InputError, match="Processes die whatever they are asked"):
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
    alone = [[2], [3], [4]] if text.startswith("2 4") else []
    assert [chunk for chunk in asked.chunks if len(chunk) == 1] == alone
    run(job, Echo())  # the row is done: what the file says counts no more
    assert {*rows_in(job.out), *bad_in(job.out)} == set(range(40))


# Refused


def test_two_runs_in_one_folder_are_refused(job):
    def second(chunk):
        with pytest.raises(fv.InputError, match=rf"in use by another run, process {os.getpid()}\. Wait"):
            run(job, Echo())

    run(job, Echo(second))
    assert whole(job.out)


CHANGES = [
    ({"max_new_tokens": 5}, "other settings: max_new_tokens was 4, and is 5"),
    ({"retention": 0.2}, "other settings: retention was None, and is 0.2"),
    ({"fit": "pad"}, "other settings: fit was 'own', and is 'pad'"),
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
    job.input.write_text(text + "\n")
    with pytest.raises(fv.InputError, match="begun with another input: sha256 was"):
        run(job, Echo())
    job.input.write_text(text)
    run(replace(job, asking=replace(job.asking, batch_size=3), part_rows=5), Echo())
    assert whole(job.out)


def test_a_folder_with_other_files_is_refused_and_left_alone(job):
    job.out.mkdir()
    (job.out / "mine.txt").write_text("mine")
    with pytest.raises(fv.InputError, match=r"holds 'mine\.txt', and is the folder of no job"):
        run(job, Echo())
    assert (job.out / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "foveate batch 9", "rows": 3}', "\x00" * 90])
def test_a_damaged_manifest_is_refused(job, text):
    run(job, Echo())
    (job.out / "manifest.json").write_text(text)
    with pytest.raises(fv.InputError, match=r"manifest\.json is damaged, or of another version"):
        run(job, Echo())


@pytest.mark.parametrize("name", ["part-0000000003-0000000004.jsonl", "part-0000000050-0000000060.jsonl"])
def test_a_part_that_was_copied_into_the_folder_is_refused(job, name):
    run(job, Echo())
    (job.out / name).touch()
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


@pytest.fixture
def full_disk():
    """No file may grow beyond some bytes, which ends as a full disk does: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_full_disk_is_one_error_and_the_run_can_go_on(job, full_disk, kind):
    job = replace(job, parts=kind)
    run(job, Echo(), Stopping(after=1))
    full_disk(500)
    with pytest.raises(fv.InputError, match=r"File too large.*Make room, and run again: nothing is lost\."):
        run(job, Echo())
    full_disk(resource.RLIM_INFINITY)
    summary = run(job, Echo())
    assert (summary.answered, summary.bad, summary.left) == (35, 5, 0)
    assert kind == "parquet" or whole(job.out)
    assert set(bad_in(job.out)) == set(range(0, 40, 9))


def test_half_a_line_of_the_bad_rows_is_taken_out(tmp_path):
    with open_output(tmp_path, "jsonl") as output:
        output.begin({"rows": 9})
        output.add([Bad(number, "é" * 30) for number in range(3)])
        output.add([Bad(5, "é")])
    with (tmp_path / "bad.jsonl").open("ab") as file:
        file.write(b'{"row": 4}\nnonsense\n{"row": "5"}\n{"row": 5, "id": nu')
    with open_output(tmp_path, "jsonl") as output:
        output.resume(9)
        assert (output.bad, list(output.done), output.parts) == (4, [(0, 2), (5, 5)], 2)
    assert sorted(bad_in(tmp_path)) == [0, 1, 2, 5]


def test_parquet_parts_hold_the_same_rows(job):
    import pyarrow.parquet

    run(job, Echo())
    run(replace(job, out=job.out.with_name("parquet"), parts="parquet"), Echo())
    rows = {}
    for part in sorted(job.out.with_name("parquet").glob("part-*.parquet")):
        for row in pyarrow.parquet.read_table(part).to_pylist():
            del row["prepare_seconds"], row["answer_seconds"]
            rows[row["row"]] = row
    assert rows == rows_in(job.out)
    assert bad_in(job.out.with_name("parquet")) == bad_in(job.out)


def test_names_that_are_no_text_are_written_as_they_are(tmp_path):
    name = os.fsdecode(b"caf\xe9\x00.png")
    with open_output(tmp_path, "jsonl") as output:
        output.begin({"rows": 2})
        output.add([Bad(0, "no picture", media=(name,))])
    assert bad_in(tmp_path)[0]["media"] == [name]


def test_what_is_answered_is_known_by_row_and_not_by_order(tmp_path):
    rows = [answered(Row(number, str(number), (), f"q{number}")) for number in (9, 2, 3, 7, 8)]
    with open_output(tmp_path, "jsonl") as output:
        output.begin({"rows": 10})
        output.add(rows)
        assert list(output.done) == [(2, 3), (7, 9)]
    lines = (tmp_path / "part-0000000007-0000000009.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [7, 8, 9]
