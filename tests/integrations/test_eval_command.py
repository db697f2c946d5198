"""`foveate eval --tasks` on drawn benchmarks: the harness's own figures, paired, with intervals."""

import json

import pytest
from PIL import Image

from foveate import cli
from foveate.eval.plan import BASELINES
from tests.integrations.conftest import QUESTIONS


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_benchmarks_are_run_under_every_setting_and_paired(run, tasks, tmp_path):
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
    asked = ("eval", *asked, "--method", "divprune", "--method", "v2drop", "--budget", 32, "--draws", 1)
    code, said, err = run(*asked, "--out", out, "--figure", drawn)
    assert code == 0, err
    assert "benchmarks: foveate_pope, foveate_textvqa" in err
    assert "pope_f1_score" in said
    assert "infeasible" in said
    found = json.loads(out.read_text())
    pope = found["tasks"]["foveate_pope"]
    assert (pope["protocol"], pope["names"]["foveate_pope"]) == ("own", "foveate_pope")
    assert pope["metric"] == "pope_f1_score"
    rows = {(row["name"], row["budget"]): row for row in pope["rows"] if row["task"] is None}
    assert rows.keys() >= {("full model", None), *((name, 32) for name in BASELINES)}
    assert [key for key, row in rows.items() if "infeasible" in row] == [("v2drop", 32)]
    ours = rows["divprune", 32]
    assert ours["tokens"] == pytest.approx(32, abs=1)
    assert ours["kl"] >= 0
    assert None not in (ours["minus_random"], ours["minus_resize"])
    assert pope["rows"][0]["commonest"] is None  # lmms-eval names no label that its own function would count
    assert ours["paired"] == []
    assert rows["uniform", 32]["paired"][0]["name"] == "divprune"
    Image.open(drawn).verify()
    answered = sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))
    assert answered == 2 * QUESTIONS * (1 + 1 + len(BASELINES))
    code, said, err = run(*asked, "--json")
    assert code == 0, err
    assert "answers are known already" in err
    assert json.loads(said)["tasks"] == found["tasks"]
    assert answered == sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))


def test_unknown_names_and_mixtures_are_refused(run, tmp_path):
    code, _, err = run("eval", "--tasks", "nothing_of_that_name", "--cache", tmp_path)
    assert code == 2
    assert "textvqa" in err
    code, _, err = run("eval", "--tasks", "colour,pope", "--cache", tmp_path)
    assert (code, "run apart" in err) == (2, True)
