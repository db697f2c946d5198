"""Engines that run `Predictor` in their own workers give its answers, row for row."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from foveate import embedded
from foveate.batch import Predictor

CLUSTERS = Path(__file__).parents[2] / "examples" / "clusters"
SETTINGS = {"prompt": "What is this?", "method": "divprune", "retention": 1 / 3}


@pytest.fixture(scope="module")
def rows():
    """Six rows: pictures inside and outside of them, a file that is no picture, and nothing."""
    path = str(embedded.picture())
    inside = {"bytes": Path(path).read_bytes(), "path": None}
    images = [{"bytes": None, "path": path}, inside, {"bytes": b"no picture", "path": None}, None, inside, inside]
    return {"id": list(range(6)), "image": images}


@pytest.fixture(scope="module")
def expected(rows):
    told = Predictor(**SETTINGS)(rows)
    return [(row, told["answer"][row], told["error"][row] is None) for row in rows["id"]]


def start(script, *arguments, options=()):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    return subprocess.Popen(
        [sys.executable, str(CLUSTERS / script), *map(str, arguments), SETTINGS["prompt"], *options],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, env=environment,
    )  # fmt: skip


def finish(process):
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-3000:]


def answers_in(folder):
    import pyarrow.parquet

    told = [row for part in folder.glob("*.parquet") for row in pyarrow.parquet.read_table(part).to_pylist()]
    return sorted((row["id"], row["answer"], row["error"] is None) for row in told)


def write(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=1)
    return path


@pytest.mark.further
def test_ray_data_gives_a_rows_answer_or_its_error(rows, expected, tmp_path):
    pytest.importorskip("ray")
    path = write(tmp_path / "rows.parquet", rows)
    finish(start("on_ray.py", path, tmp_path / "answers"))
    assert answers_in(tmp_path / "answers") == expected


@pytest.mark.further  # two starts of Ray, each a minute on two cores
def test_a_killed_run_of_ray_data_is_completed_by_the_next_and_has_no_row_twice(tmp_path):
    """Ray writes so few rows in one piece: the kill comes when it is there, and the next run asks none again."""
    pytest.importorskip("ray")
    image = {"bytes": None, "path": str(embedded.picture())}
    rows = tmp_path / "rows"
    rows.mkdir()
    for part in range(16):
        write(rows / f"{part}.parquet", {"id": [*range(64 * part, 64 * part + 64)], "image": [image] * 64})
    answers, checkpoints = tmp_path / "answers", tmp_path / "answers.checkpoints"
    options = ("--cpus", "4")  # with two CPUs a resumed run waits for ever
    killed = start("on_ray.py", rows, answers, options=options)
    while killed.poll() is None and not [*checkpoints.rglob("*.parquet")]:
        time.sleep(0.01)
    assert killed.poll() is None
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    first = {path: path.stat().st_mtime_ns for path in answers.glob("*.parquet")}
    finish(start("on_ray.py", rows, answers, options=options))
    assert [row for row, _, _ in answers_in(answers)] == [*range(16 * 64)]
    assert {path: path.stat().st_mtime_ns for path in first} == first


def test_daft_gives_a_rows_answer_or_its_error(rows, expected, tmp_path):
    pytest.importorskip("daft")
    bytes_of = [
        None if image is None else image["bytes"] or Path(image["path"]).read_bytes() for image in rows["image"]
    ]
    finish(start("on_daft.py", write(tmp_path / "rows.parquet", {**rows, "image": bytes_of}), tmp_path / "answers"))
    assert answers_in(tmp_path / "answers") == expected
