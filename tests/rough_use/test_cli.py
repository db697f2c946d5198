"""The command line, tuning and evaluation: what ends badly, or is not said."""

import dataclasses
import json
import re
from contextlib import nullcontext

import foveate as fv
from foveate.cli.generate import Generate
from foveate.cli.tune import SCHEDULED
from foveate.contract import Cuts, Layers
from foveate.plain.stats import Estimate
from foveate.runs.listener import Listener
from foveate.tuning.tuned import HeldOut, Tuned
from tests.cli.conftest import QUESTION


def test_a_setting_that_is_ahead_on_held_out_pictures_is_named():
    sure, ahead = Estimate(0.9, 0.8, 1.0), Estimate(0.6, 0.2, 1.0)
    grid = HeldOut(
        name="grid", method=fv.V2Drop(layers=(7,), keep=(0.125,)), tokens=64, agreement=sure, root=sure, ahead=ahead
    )
    values = {field.name: None for field in dataclasses.fields(Tuned)} | {"chosen": "published", "pictures": (4, 4, 4)}
    tuned = Tuned(**values | {"rows": (grid,)})
    assert "No setting that was tried is ahead" not in tuned.verdict
    assert "0.125" in str(tuned.table())


def test_compare_names_the_method_whose_schedule_random_has(run, model, picture, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(fv.V2Drop(layers=(1,), keep=(0.5,)).to_dict()))
    methods = ("--method", tmp_path / "mine.json", "--method", "random", "--pairs", 2)
    code, out, _ = run("compare", picture, *QUESTION, *methods, "--model", model)
    assert (code, "random as v2drop" in out) == (0, False)


def test_tune_takes_the_lines_that_batch_takes(run, tmp_path):
    (path := tmp_path / "in.jsonl").write_text('{"id": "a", "image": "none.png", "question": "What?"}')
    assert "none.png cannot be read" in run("tune", "--samples", path, "--budget", 20)[2]


def test_a_method_of_two_cuts_takes_a_budget(vlm):
    class Twice(Cuts):
        name, usual_layers, usual_keep = "twice", (1, 2), (0.5, 0.2)
        layers: Layers | None = None

    assert vlm.method_for(Twice(layers=(1, 2), retention=0.5), 36).plan(6, (36,)) == (36, 36, 9, 9, 9, 9)


def test_tune_begins_with_the_method_of_the_other_commands():
    assert Generate().method == SCHEDULED


def test_a_slip_in_a_task_is_one(run):
    _, _, err = run("eval", "--tasks", "cuont")
    assert "count" in err.replace("cuont", "")


def test_progress_is_told_by_batches(answer, questions):
    steps, listener = [], Listener()
    listener.stage = lambda doing, total, done=0: nullcontext(steps.append)
    answer(questions(16), listener=listener)
    assert max(steps) <= 4


def test_parts_hold_no_digits_that_mean_nothing(answer, questions, tmp_path):
    answer(questions(2))
    (part,) = (tmp_path / "out").glob("part-*")
    assert re.findall(r"\d\.\d{9,}", part.read_text()) == []


def test_a_notebook_shows_a_method_as_one_writes_it(vlm, picture):
    html = vlm.ask(picture, "What is this ?", method="v2drop:layers=1,2,3", max_new_tokens=2)._repr_html_()
    assert "min_keep=1, scope=" not in html
