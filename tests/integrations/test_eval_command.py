"""`foveate eval --tasks` on drawn benchmarks: the harness's own figures, paired, with intervals."""

import importlib
import json
import warnings

import pytest
from PIL import Image

from foveate import cli
from foveate.eval.lmms.setting import Asked
from foveate.eval.lmms.tracking import Label, when_written
from tests.integrations.conftest import QUESTIONS


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_benchmarks_are_run_under_every_setting_and_paired(run, tasks, tmp_path):
    with warnings.catch_warnings():
        importlib.import_module("lmms_eval.utils")  # which has all later warnings ignored
    when_written(Label(model="embedded", asked=Asked(method="v2drop")), dict)  # left by a run without results
    out, drawn = tmp_path / "scores.json", tmp_path / "pareto.png"
    asked = (
        "--tasks",
        "foveate_pope,foveate_textvqa",
        "--include",
        tasks,
        "--batch-size",
        4,
        "--cache",
        tmp_path / "kept",
    )
    asked = ("eval", *asked, "--method", "v2drop", "--budget", 64, "--budget", 32, "--draws", 1)
    code, said, err = run(*asked, "--out", out, "--figure", drawn, "--log-samples", tmp_path / "lmms")
    assert code == 0, err
    assert "benchmarks: foveate_pope, foveate_textvqa" in err
    assert "pope_f1_score" in said
    assert "infeasible" in said
    found = json.loads(out.read_text())
    assert (found["protocol"], found["names"]["foveate_pope"]) == ("own", "foveate_pope")
    pope = found["tasks"]["foveate_pope"]
    assert pope["metric"] == "pope_f1_score"
    assert pope["full"]["accuracy"]["value"] == pytest.approx(
        found["harness"]["full"]["tasks"]["foveate_pope"]["metrics"]["pope_f1_score"], abs=1e-4
    )
    names = {(cell["name"], cell["budget"]) for cell in pope["cells"]}
    assert names >= {
        ("v2drop", 64),
        ("random", 64),
        ("random", 32),
        ("uniform", 64),
        ("averagepool", 64),
        ("resize", 64),
    }
    assert [(cell["name"], cell["budget"]) for cell in pope["infeasible"]] == [("v2drop", 32)]
    (ours,) = (cell for cell in pope["cells"] if cell["name"] == "v2drop")
    assert ours["tokens"] == pytest.approx(64, abs=1)
    assert ours["kl"]["value"] >= 0
    assert set(ours["against"]) == {"random", "resize"}
    Image.open(drawn).verify()
    answered = sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))
    assert answered == 2 * QUESTIONS * (1 + 1 + 2 * 4)
    check_files(tmp_path / "lmms", found["harness"])
    code, _, err = run(*asked, "--json")
    assert "answers are known already" in err
    assert answered == sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))


def check_files(folder, harness):
    """Refuse files that do not say method, budget, retention and tokens, a folder a setting."""
    assert {"embedded__full", "embedded__v2drop__64-tokens", "embedded__random__layers=0__32-tokens__seed-0"} <= {
        path.name for path in folder.iterdir()
    }
    ran = [harness["full"], *(draw for draws in harness["cells"] for draw in draws)]
    assert len(list(folder.iterdir())) == len(ran)
    asked = {(one["method"], one["budget"]) for one in ran}
    assert asked >= {("full", None), ("v2drop", 64), ("random", 32)}
    for place in folder.iterdir():
        (file,) = place.glob("*_results.json")
        results = json.loads(file.read_text())
        ours = results["foveate"]
        (scores,) = (
            one for one in ran if all(one.get(key) == ours.get(key) for key in ("method", "budget", "seed", "settings"))
        )
        for task in ("foveate_pope", "foveate_textvqa"):
            assert results["results"][task]["tokens,none"] == pytest.approx(scores["tasks"][task]["tokens"])
            (samples,) = place.glob(f"*_samples_{task}.jsonl")
            rows = [json.loads(line) for line in samples.read_text().splitlines()]
            assert len(rows) == QUESTIONS
            assert {row["foveate"]["method"] for row in rows} == {scores["method"]}
            retention = sum(row["foveate"]["retention"] for row in rows) / len(rows)
            assert retention == pytest.approx(scores["tasks"][task]["retention"])


def test_unknown_names_and_mixtures_are_refused(run, tmp_path):
    code, _, err = run("eval", "--tasks", "nothing_of_that_name", "--cache", tmp_path)
    assert code == 2
    assert "textvqa" in err
    code, _, err = run("eval", "--tasks", "colour,pope", "--cache", tmp_path)
    assert (code, "run apart" in err) == (2, True)
