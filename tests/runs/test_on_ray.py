"""Ray gives what one process gives. These tests need a real Ray: pip install -e '.[ray]'."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.rows import RowAsking
from foveate.naming import parse
from foveate.runs.on_ray import Actors
from tests.batch.conftest import bad_in, here, rows_in
from tests.batch.places import deadly
from tests.batch.test_job import Stopping

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install -e '.[ray]'): NOT TESTED"
)
ROWS = 48


@with_ray
def test_actors_answer_as_this_process_and_go_on(questions, answer, asking, vlm, tmp_path):
    """A job that goes from this process to Ray, and is stopped there, and ends here."""
    path, out = questions(ROWS), tmp_path / "out"
    answer(path, out="whole")
    first = answer(path, listener=Stopping(20))
    assert 0 < first.asked < ROWS // 2
    on_ray("stop_on_ray", path, out, asking.model)
    last = run(Job(input=path, out=out, asking=asking), here(asking, vlm))
    assert (last.left, rows_in(out)) == (0, rows_in(tmp_path / "whole"))
    assert bad_in(out) == bad_in(tmp_path / "whole")


@with_ray
@pytest.mark.skipif(
    os.environ.get("FOVEATE_TESTS") != "all", reason="actors that die take a minute: FOVEATE_TESTS=all make test-all"
)
def test_an_actor_that_dies_costs_the_row_that_it_dies_of(questions, answer, asking, tmp_path):
    path = questions(ROWS)
    answer(path, out="whole")
    on_ray("die_on_ray", path, tmp_path / "out", asking.model)
    assert rows_in(tmp_path / "out") == rows_in(tmp_path / "whole")
    bad = bad_in(tmp_path / "out")
    assert set(bad) == set(bad_in(tmp_path / "whole"))
    assert all("died, even alone" in row["reason"] for row in bad.values())


def on_ray(name, *arguments):
    """Run one of the functions below in a process: what Ray leaves open would fail other tests. It is sure to end."""
    program = f"import sys; from tests.runs.test_on_ray import {name}; {name}(*sys.argv[1:])"
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, env={**elsewhere, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=900)
    finally:
        process.kill()  # the processes of Ray end with it
    assert process.returncode == 0, said


def job_of(path, out, model):
    asking = RowAsking(
        model=model, device="cpu", method=parse("v2drop:layers=1,2,3;keep=0.5,0.3,0"), max_new_tokens=4, batch_size=2
    )
    return Job(input=Path(path), out=Path(out), asking=asking, part_rows=8)


def stop_on_ray(*arguments):
    """Stop after a chunk, on a Ray that runs already."""
    import ray

    job = job_of(*arguments)
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    stopped = run(job, Actors(job.asking.begin, 2), Stopping(2))
    assert 0 < stopped.asked < ROWS
    assert stopped.left
    assert ray.is_initialized()


def die_on_ray(*arguments):
    """Go to the end where some files are deadly."""
    job = job_of(*arguments)
    assert run(job, Actors(deadly(job.asking).begin, 2, "local")).left == 0


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(fv.UnsupportedError, match="installed"):
        Actors(None)
