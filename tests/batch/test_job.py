"""A job from end to end on a tiny model: killed, stopped, in several processes, it gives what one run would have."""

import faulthandler
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.eval import provenance
from foveate.runs.listener import Listener
from foveate.runs.samples import Samples
from tests.batch.conftest import bad_in, here, rows_in
from tests.batch.places import make_files_deadly
from tests.forked import alive, forked

ROWS = 90
BEGUN_WITH_RAY = Path(__file__).with_name("begun_with_ray.json")
FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
PROGRAM = "import sys; from foveate.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def uninterrupted(questions, answer, tmp_path):
    """An input, and what a run that nothing disturbs makes of it."""
    path = questions(ROWS)
    answer(path, out="whole")
    rows, bad = rows_in(tmp_path / "whole"), bad_in(tmp_path / "whole")
    assert sorted({*rows, *bad}) == list(range(ROWS))
    assert len(bad) == ROWS // 7
    assert len({row["answer"] for row in rows.values()}) > 10
    return path, rows, bad


def crashes(job, vlm):
    """How often a job crashes before it is done."""
    for times in range(9):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                faulthandler.disable()  # that of the tests; a run has its own
                make_files_deadly()
                run(job, here(job.asking, vlm))
                code = 0
            finally:
                os._exit(code)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended in (0, -signal.SIGABRT)
        if not ended:
            return times
    raise AssertionError("it crashes for ever")


@FORKS
def test_a_row_that_crashes_the_process_is_given_up_by_later_runs(answer, questions, asking, vlm, tmp_path):
    path = questions(15)
    answer(path, out="whole")
    job = Job(input=path, out=tmp_path / "out", asking=asking)
    assert crashes(job, vlm) == 4  # rows 6 and 13, each in its chunk and alone
    assert rows_in(job.out) == rows_in(tmp_path / "whole")
    bad = bad_in(job.out)
    assert list(bad) == [6, 13]
    assert all("died, even alone" in row["reason"] for row in bad.values())
    assert not (job.out / ".in-hand").exists()


@FORKS
def test_a_row_that_crashes_the_process_is_found_in_a_job_that_grew(answer, questions, asking, vlm, tmp_path):
    """Numbers of rows are in the order in which they came, not in the input's."""
    path = questions(7)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0])
    answer(path)
    path.write_text("".join(lines[::-1]))
    crashes(Job(input=path, out=tmp_path / "out", asking=asking), vlm)
    assert [row["id"] for row in bad_in(tmp_path / "out").values()] == ["row 6"]
    assert len(rows_in(tmp_path / "out")) == 6


class Stopping(Listener):
    """Stops a run at its n-th look, and counts what is done."""

    def __init__(self, looks):
        self.looks, self.done = looks, 0

    def stage(self, doing, total, done=0):
        from contextlib import nullcontext

        return nullcontext(self._add)

    def _add(self, count):
        self.done += count

    def stopped(self):
        self.looks -= 1
        return self.looks < 0


def test_a_run_that_is_stopped_within_a_chunk_goes_on_behind_its_last_row(uninterrupted, answer, tmp_path):
    path, rows, bad = uninterrupted
    asked = 0
    for looks in (3, 20, 21, 29, 10**9):
        listener = Stopping(looks)
        summary = answer(path, listener=listener)
        assert listener.done == summary.asked
        asked += summary.asked
        assert summary.left == ROWS - asked
    assert (rows_in(tmp_path / "out"), bad_in(tmp_path / "out")) == (rows, bad)


def test_a_job_with_a_system_text_goes_on_with_that_text_alone(uninterrupted, answer, vlm, tmp_path):
    path, plain, _ = uninterrupted
    answer(path, out="with text", system="w1 w2 w3")
    rows = rows_in(tmp_path / "with text")
    assert [row["answer"] for row in rows.values()] != [row["answer"] for row in plain.values()]
    for looks in (20, 29, 10**9):
        vlm.system = None  # as in another process
        answer(path, listener=Stopping(looks), system="w1 w2 w3")
        for system in (None, "w1 w2 w4"):
            with pytest.raises(fv.InputError, match="settings"):
                answer(path, system=system)
    assert rows_in(tmp_path / "out") == rows


def test_a_job_that_actors_of_ray_began_goes_on(uninterrupted, answer, tmp_path):
    """Its settings are those that `foveate batch --ray` wrote. Nothing else in its folder tells who began it."""
    path, rows, bad = uninterrupted
    answer(path, listener=Stopping(20))
    manifest = tmp_path / "out" / "manifest.json"
    content = json.loads(manifest.read_text())
    own = {name: content["settings"][name] for name in ("model", "method code")}
    content["settings"] = json.loads(BEGUN_WITH_RAY.read_text()) | own
    manifest.write_text(json.dumps(content))
    answer(path)
    assert (rows_in(tmp_path / "out"), bad_in(tmp_path / "out")) == (rows, bad)


def test_other_weights_are_refused_in_a_folder_that_was_begun(answer, questions, monkeypatch):
    path = questions(9)
    assert 0 < answer(path, listener=Stopping(8)).asked < 9
    monkeypatch.setattr(provenance, "sha256_of", lambda path: "ab" * 32)
    with pytest.raises(fv.InputError, match=r"another model or other versions: files \S+ was '\w+…, and is 'abab"):
        answer(path)


def test_broken_lines_have_a_file_of_their_own_also_after_a_second_run(answer, questions, tmp_path):
    path = questions(7)
    path.write_text(path.read_text() + 'no JSON\n[1]\n{"line": "no media"}\n')
    out = tmp_path / "out"
    for _ in range(2):
        summary = answer(path)
        assert (summary.rows, summary.answered, summary.bad, summary.broken, summary.left) == (10, 6, 4, 3, 0)
    bad = [json.loads(line) for line in (out / summary.bad_file).read_text().splitlines()]
    broken = [json.loads(line) for line in (out / summary.broken_file).read_text().splitlines()]
    assert [row["id"] for row in bad] == ["row 6"]
    assert [(row["row"], row["line"]) for row in broken] == [(7, "no JSON"), (8, "[1]"), (9, "no media")]
    assert "not valid JSON" in broken[0]["reason"]


def until(holds, program, seconds=900):
    """Wait until this holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        assert program.poll() is None or holds(), program.stderr.read()
        time.sleep(0.05)


def test_two_processes_answer_as_one_and_end_when_the_first_is_killed(uninterrupted, model, asking, vlm, tmp_path):
    path, rows, bad = uninterrupted
    out = tmp_path / "out"
    words = [
        "--model",
        str(model),
        "--device",
        "cpu",
        "--method",
        "v2drop:layers=1,2,3;keep=0.5,0.3,0",
        "--max-new-tokens",
        "4",
    ]
    words += ["--batch-size", "2", "--part-rows", "1", "--workers", "2"]
    program = forked(
        PROGRAM, "batch", path, out, *words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        until(lambda: len(list(out.glob("part-*"))) > 24, program)  # a row each
        program.kill()
        program.communicate(timeout=300)
        end = time.monotonic() + 300
        while alive(program.pid):  # what began with it has ended with it
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        if alive(program.pid):
            os.killpg(program.pid, signal.SIGKILL)
    by_workers, bad_by_workers = rows_in(out), bad_in(out)
    assert len(by_workers) > 20
    summary = run(Job(input=path, out=out, asking=replace(asking, device="cpu")), here(asking, vlm))
    assert summary.asked == ROWS - len(by_workers) - len(bad_by_workers)
    assert (rows_in(out), bad_in(out)) == (rows, bad)


def test_a_limit_asks_the_first_rows_and_a_later_run_the_others(questions, answer, tmp_path):
    path = questions(20)
    first = answer(path, limit=5)
    assert (first.rows, first.answered + first.bad, first.left) == (5, 5, 0)
    assert sorted(rows_in(tmp_path / "out")) == list(range(5))
    again = answer(path, limit=3)
    assert (again.rows, again.asked, again.left) == (3, 0, 0)
    last = answer(path)
    assert (last.rows, last.asked, last.left) == (20, 15, 0)
    answer(path, out="whole")
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")


def timed(call):
    begun = time.process_time()
    call()
    return time.process_time() - begun


def test_rows_with_a_label_are_scored(questions, answer, tmp_path):
    path = questions(6)
    answer(path, out="before")
    said = rows_in(tmp_path / "before")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = [f" {said[0]['answer'].upper()}.", ["no", said[1]["answer"]], "something else", None, {"a": 1}, ""]
    for row, label in zip(rows, labels, strict=True):
        row["label"] = label
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    summary = answer(path, parts="jsonl")
    assert {row: values.get("right") for row, values in rows_in(tmp_path / "out").items()} == {
        0: True, 1: True, 2: False, 3: None, 4: None, 5: None,
    }  # fmt: skip
    assert summary.accuracy == pytest.approx(2 / 3)
    answer(path, out="tables", parts="parquet")
    table = pytest.importorskip("pyarrow.parquet").read_table(next((tmp_path / "tables").glob("*.parquet")))
    assert table.column("right").to_pylist().count(True) == 2


@pytest.fixture
def labelled(questions, answer, tmp_path):
    """An input of eight rows, one bad, two of them with a label that is right."""
    path = questions(8)
    answer(path, out="before")
    said = rows_in(tmp_path / "before")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    labels = [said[number]["answer"] if number < 2 else "something else" for number in range(8)]
    lines = [json.dumps({**row, "label": label}) + "\n" for row, label in zip(rows, labels, strict=True)]
    path.write_text("".join(lines))
    return path


@pytest.mark.parametrize("parts", ["jsonl", "parquet"])
def test_figures_are_those_of_the_whole_job_however_it_was_run(labelled, answer, parts):
    if parts == "parquet":
        pytest.importorskip("pyarrow")
    options = {"parts": parts, "part_rows": 2, "fit": "pad"}
    stopped = answer(labelled, listener=Stopping(11), **options)
    again, finished = answer(labelled, **options), answer(labelled, **options)
    assert (1 < stopped.asked < 8, stopped.asked + again.asked, finished.asked, finished.rate) == (True, 8, 0, None)
    for summary in (again, finished):
        assert (summary.answered, summary.bad, summary.vision_tokens) == (7, 1, 36)
        assert summary.accuracy == pytest.approx(2 / 7)
        assert summary.retention == pytest.approx(15 / 36, abs=1e-5)


# -- a method that fails ------------------------------------------------------------------------------------------


class Broken(fv.contract.Cuts):
    """Fails from a row on."""

    name = "my_method"
    usual_layers = (1,)
    reads = (fv.contract.Hidden(),)
    layers: fv.contract.Layers | None = None
    keep: fv.contract.Shares | None = None
    rows = most = 0

    def score(self, view, layer):
        Broken.rows += 1
        if Broken.rows > Broken.most:
            return view.hiden
        return view.hidden.float().norm(dim=-1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_method_of_ones_own_that_fails_ends_the_job_with_its_name_and_makes_no_bad_rows(
    pictures, answer, tmp_path, monkeypatch, batch_size
):
    monkeypatch.setattr(Broken, "rows", 0)
    monkeypatch.setattr(Broken, "most", 2 * batch_size)
    with pytest.raises(fv.MethodError, match="my_method"):
        answer(pictures, question="What is this", method=Broken(layers=(1,), keep=(0.5,)), batch_size=batch_size)
    assert bad_in(tmp_path / "out") == {}
    assert len(rows_in(tmp_path / "out")) == 2 * batch_size
    assert Broken.rows < 10 * batch_size


def test_a_job_that_goes_on_does_not_count_its_input_again(answer, questions, monkeypatch):
    path = questions(15)
    answer(path, limit=5)
    monkeypatch.setattr(Samples, "count", lambda samples: pytest.fail("counted again"))
    assert answer(path, limit=9).asked == 4
