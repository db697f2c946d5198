"""The page on the architecture shows the way of one question through the files: the calls are recorded, and are so."""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import foveate as fv
from foveate.batch import job
from foveate.batch.rows import RowAsking
from foveate.cost import _measured
from foveate.eval.evaluation import evaluate_samples
from foveate.eval.plan import Plan
from foveate.runs.samples import samples_in

ROOT = Path(__file__).parents[1]
SOURCE = Path(fv.__file__).parent
SECTION = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("## The way of one question")[1]
LAYERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]["layers"]
RANK = {room: number for number, layer in enumerate(LAYERS) for room in layer.split(" | ")}


class Walk:
    """Calls of foveate's functions while the context lasts.

    Attributes:
        calls: "file:function", in order.
        climbs: Pairs of files: of a caller, and of what it called in a room above its own.
    """

    def __init__(self):
        self.calls, self.climbs = [], set()

    def __enter__(self):
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)

    def _note(self, frame, event, _):
        if event != "call" or (here := place(frame)) is None:
            return
        self.calls.append(f"{here}:{frame.f_code.co_qualname}")
        caller = frame.f_back
        while caller is not None and place(caller) is None:
            caller = caller.f_back
        if caller is not None and rank(here) < rank(place(caller)):
            self.climbs.add((place(caller), here))


def place(frame):
    """The file of a named function, from the source's folder."""
    path = Path(frame.f_code.co_filename)
    if frame.f_code.co_name.startswith("<") or not path.is_relative_to(SOURCE):
        return None
    return path.relative_to(SOURCE).as_posix()


def rank(file):
    return RANK.get(file.partition("/")[0].removesuffix(".py"), len(LAYERS))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A question about a picture."""
    folder = tmp_path_factory.mktemp("walk")
    Image.new("RGB", (336, 336), "red").save(folder / "a.png")
    path = folder / "in.jsonl"
    path.write_text(json.dumps({"image": "a.png", "question": "What is it?"}) + "\n")
    return path


@pytest.fixture(scope="module")
def walks(rows):
    """The three walks, by the bold words that their lists begin with; each process measures FLOPs once, here again."""
    folder = rows.parent
    fv.presets()
    vlm = fv.load("embedded", device="cpu")
    inputs = vlm.prepare(folder / "a.png", "What is it?").inputs
    method = fv.V2Drop(retention=1 / 3)
    with Walk() as dropping, fv.drop(vlm.model, "v2drop", retention=1 / 3):
        vlm.model.generate(**inputs, max_new_tokens=2)
    with Walk() as batch:
        asking = RowAsking(model="embedded", device="cpu", method=method, max_new_tokens=2)
        job.run(job.Job(input=rows, out=folder / "out", asking=asking))
    plan = Plan(methods=("v2drop",), retention=(1 / 3,), baselines=False, cache=folder / "kept", max_new_tokens=2)
    with pytest.MonkeyPatch.context() as patch, Walk() as evaluation:
        patch.setattr(_measured, "_KNOWN", {})
        evaluate_samples(vlm, samples_in(rows), plan)
    return {"fv.drop": dropping, "foveate batch": batch, "foveate eval": evaluation}


@pytest.mark.parametrize("name", ["fv.drop", "foveate batch", "foveate eval"])
def test_the_steps_are_called_in_the_order_of_the_page(walks, name):
    steps = SECTION.partition(f"**`{name}")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()
    assert len(steps) > 10
    calls = iter(walks[name].calls)
    for step in steps:
        named = re.findall(r"`((?:\w+/)*\w+\.py:[\w.]+)`", step)
        assert any(call in named for call in calls), step


def test_calls_go_down_but_for_those_of_what_was_given(walks):
    told = set()
    for line in SECTION.partition("| from |")[2].splitlines()[2:]:
        if line.startswith("| `"):
            lower, higher = (re.findall(r"`([\w/]+\.py)`", cell) for cell in line.split("|")[1:3])
            told |= {(one, other) for one in lower for other in higher}
    climbs = set().union(*(walk.climbs for walk in walks.values()))
    assert climbs <= told
    assert {one for pair in told for one in pair} == {one for pair in climbs for one in pair}
