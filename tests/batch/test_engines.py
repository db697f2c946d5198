"""Engines that run `Predictor` in their own workers give its answers, row for row."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from foveate import embedded
from foveate.batch import Predictor
from foveate.batch.job import Job, run
from foveate.embedded.scenes import scene

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


@pytest.fixture(scope="module")
def cluster():
    """The address of Ray with two CPUs and no page."""
    pytest.importorskip("ray")
    code = """
import ray, sys
print(ray.init(num_cpus=2, include_dashboard=False, address="local").address_info["address"], flush=True)
sys.stdin.read()
"""
    head = begin("-c", code, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    yield head.stdout.readline().strip()
    finish(head)


def begin(*words, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "disabled",
    }
    environment["RAY_worker_niceness"] = "0"  # Ray's 15 is minutes beside other tests
    environment |= options.pop("env", {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} | options
    return subprocess.Popen([sys.executable, *words], text=True, start_new_session=True, env=environment, **pipes)


def start(script, *arguments, options=(), **environment):
    return begin(str(CLUSTERS / script), *map(str, arguments), SETTINGS["prompt"], *options, env=environment)


def finish(process):
    try:
        output, _ = process.communicate(timeout=400)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output[-3000:]


def answers_in(folder):
    import pyarrow.parquet

    rows = [row for part in folder.glob("*.parquet") for row in pyarrow.parquet.read_table(part).to_pylist()]
    return sorted((row["id"], row["answer"], row.get("error") is None) for row in rows)


def ids_in(checkpoints):
    """The ids of the rows that Ray will not ask for again. A checkpoint is pending until its answers are written."""
    import pyarrow.parquet

    parts = [part for part in checkpoints.glob("*.parquet") if ".pending." not in part.name]
    return [row for part in parts for row in pyarrow.parquet.read_table(part)["id"].to_pylist()]


def write(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(rows), path, row_group_size=1)
    return path


@pytest.mark.further
def test_ray_data_gives_a_rows_answer_or_its_error(rows, expected, cluster, tmp_path):
    path = write(tmp_path / "rows.parquet", rows)
    finish(start("on_ray.py", path, tmp_path / "answers", RAY_ADDRESS=cluster))
    assert answers_in(tmp_path / "answers") == expected


@pytest.mark.further  # it loads the model three times
def test_ray_data_killed_between_two_pieces_answers_only_the_rows_of_the_others(cluster, tmp_path):
    """Six pieces of 8 rows. Pictures of stored rows are deleted before the second start: it has no need of them."""
    pictures = [tmp_path / f"{number}.png" for number in range(48)]
    for number, picture in enumerate(pictures):
        Image.fromarray(scene("held-out", number).image).save(picture)
    path = write(tmp_path / "rows.parquet", {"id": [*range(48)], "image": [str(picture) for picture in pictures]})
    asking = Predictor(**SETTINGS).asking
    run(Job(input=path, out=tmp_path / "batch", asking=asking, question=SETTINGS["prompt"]))
    expected = answers_in(tmp_path / "batch")
    assert len({answer for _, answer, _ in expected}) > 9

    answers, checkpoints = tmp_path / "answers", tmp_path / "answers.checkpoints"
    options = {"options": ("--piece", "8"), "RAY_ADDRESS": cluster}
    killed = start("on_ray.py", path, answers, **options)
    while killed.poll() is None and not ids_in(checkpoints):
        time.sleep(0.01)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    stored = ids_in(checkpoints)
    assert 0 < len(stored) < 48
    for row in stored:
        pictures[row].unlink()
    finish(start("on_ray.py", path, answers, **options))
    assert answers_in(answers) == expected


def test_daft_gives_a_rows_answer_or_its_error(rows, expected, tmp_path):
    pytest.importorskip("daft")
    bytes_of = [
        None if image is None else image["bytes"] or Path(image["path"]).read_bytes() for image in rows["image"]
    ]
    finish(start("on_daft.py", write(tmp_path / "rows.parquet", {**rows, "image": bytes_of}), tmp_path / "answers"))
    assert answers_in(tmp_path / "answers") == expected
