"""A tiny model, pictures, and jobs about them."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import foveate as fv
from foveate.batch.job import Job, run
from foveate.batch.rows import Predictor, RowAsking
from foveate.naming import parse
from foveate.runs.crew import Here
from tests.cli.conftest import save_tiny_llava

WORDS = ["What", "is", "this", "yes", "no", *(f"w{number}" for number in range(40))]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("batch-llava"), layers=4)


@pytest.fixture(scope="session")
def vlm(model):
    return fv.load(model, device="cpu")


@pytest.fixture(scope="session")
def asking(model):
    return RowAsking(
        model=str(model),
        device="cpu",
        method=parse("v2drop:layers=1,2,3;keep=0.5,0.3,0"),
        max_new_tokens=4,
        batch_size=2,
    )


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of ten squares, no two alike."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = random.Random(0)
    for number in range(10):
        pixels = Image.new("RGB", (6, 6))
        pixels.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(36)])
        pixels.resize((90, 90), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def questions(pictures, tmp_path):
    """Write an input of so many rows; some pictures have several, side by side, and every seventh row is bad."""

    def write(count, name="in.jsonl"):
        rng = random.Random(1)
        path = tmp_path / name
        with path.open("w") as file:
            for number in range(count):
                picture = "nofile.png" if number % 7 == 6 else f"{number // 3 % 10}.png"
                question = " ".join(rng.choices(WORDS, k=rng.randrange(2, 9)))
                row = {"id": f"row {number}", "image": str(pictures / picture), "question": question}
                file.write(json.dumps(row) + "\n")
        return path

    return write


@pytest.fixture
def answer(asking, vlm, tmp_path):
    """Run a job in this process: its summary."""

    def call(path, out="out", **options):
        changes = {key: options.pop(key) for key in list(options) if hasattr(asking, key)}
        listener = options.pop("listener", None)
        job = Job(input=path, out=tmp_path / out, asking=replace(asking, **changes), **options)
        return run(job, here(job.asking, vlm), listener)

    return call


def here(asking, vlm):
    """This process, with a model that is loaded already."""
    return Here(lambda place, count: Predictor(asking, vlm=vlm))


def rows_in(out):
    """What all parts hold, by row, without the times; no row is there twice."""
    rows = {}
    for part in sorted(out.glob("part-*.jsonl")):
        for line in part.read_text().splitlines():
            row = json.loads(line)
            assert row.pop("prepare_seconds") >= 0
            assert row.pop("answer_seconds") >= 0
            assert row["row"] not in rows
            rows[row["row"]] = row
    return rows


def bad_in(out):
    """The bad rows and broken lines, by row; none is there twice."""
    rows = {}
    paths = filter(Path.exists, (out / "bad.jsonl", out / "broken.jsonl"))
    for line in (line for path in paths for line in path.read_text().splitlines()):
        row = json.loads(line)
        assert row["row"] not in rows
        rows[row["row"]] = row
    return rows
