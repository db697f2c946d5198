"""Ray gives what one process gives. These tests need a real Ray: pip install 'foveate[ray]'."""

import os
import subprocess
import sys

import pytest

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.on_ray import OnRay, require_ray
from tests.batch.conftest import bad_in, rows_in

try:
    import ray
except ImportError:
    ray = None
with_ray = pytest.mark.skipif(ray is None, reason="Ray is not installed (pip install 'foveate[ray]'): NOT TESTED")


@with_ray
def test_actors_answer_as_this_process_and_go_on(questions, answer, asking, tmp_path):
    """In a process of its own: what Ray leaves open would fail other tests."""
    path = questions(40)
    answer(path)
    program = "import sys; from tests.batch.test_on_ray import on_ray; on_ray(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "ray"), asking.model],
        capture_output=True, text=True, timeout=1800,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert rows_in(tmp_path / "ray") == rows_in(tmp_path / "out")
    assert bad_in(tmp_path / "ray") == bad_in(tmp_path / "out")


def on_ray(path, out, model):
    """Answer on two actors; stop after the first chunk, and go on."""
    from pathlib import Path

    from foveate.batch.answering import Asking
    from foveate.methods.grammar import read
    from tests.batch.test_job import Stopping

    asking = Asking(model=model, device="cpu", method=read("v2drop:layers=1,2,3"), max_new_tokens=4, batch_size=2)
    job = Job(input=Path(path), out=Path(out), asking=asking, part_rows=8)
    first = run(job, OnRay(asking, 2), Stopping(0))
    assert 0 < first.asked < 40
    second = run(job, OnRay(asking, 2))
    assert (first.asked + second.asked, second.left) == (40, 0)


def test_without_ray_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(fv.UnsupportedError, match=r"Ray is not installed: pip install 'foveate\[ray\]'"):
        require_ray()
