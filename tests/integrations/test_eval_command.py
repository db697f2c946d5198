"""`foveate eval --tasks` on drawn benchmarks: the harness's own figures, paired, with intervals."""

import importlib
import json
import warnings

import pytest
from PIL import Image

from foveate import cli
from foveate.eval.lmms.label import Label, when_written
from foveate.eval.lmms.setting import Setting
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
    when_written(Label(model="embedded", setting=Setting(name="v2drop")), dict)  # left by a run without results
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
    pope = found["tasks"]["foveate_pope"]
    assert (pope["protocol"], pope["names"]["foveate_pope"]) == ("own", "foveate_pope")
    assert pope["metric"] == "pope_f1_score"
    rows = {(row["name"], row["budget"]): row for row in pope["rows"] if row["task"] is None}
    assert rows.keys() >= {
        ("full model", None),
        ("random", 64),
        ("random", 32),
        ("uniform", 64),
        ("averagepool", 64),
        ("resize", 64),
    }
    assert [key for key, row in rows.items() if "infeasible" in row] == [("v2drop", 32)]
    ours = rows["v2drop", 64]
    assert ours["tokens"] == pytest.approx(64, abs=1)
    assert ours["kl"] >= 0
    assert None not in (ours["minus_random"], ours["minus_resize"])
    Image.open(drawn).verify()
    answered = sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))
    assert answered == 2 * QUESTIONS * (1 + 1 + 2 * 4)
    check_files(tmp_path / "lmms", found["tasks"])
    code, said, err = run(*asked, "--json", "--workers", 2)
    assert code == 0, err
    assert "answers are known already" in err
    assert json.loads(said)["tasks"] == found["tasks"]
    assert answered == sum(len(path.read_text().splitlines()) for path in (tmp_path / "kept").glob("*/part-*"))


def check_files(folder, tasks):
    """Refuse files that do not say method, budget, retention and tokens, a folder a setting."""
    folders = {path.name for path in folder.iterdir()}
    assert {"embedded__full", "embedded__v2drop__64-tokens", "embedded__random__layers=0__32-tokens__seed-0"} <= folders
    assert len(folders) == 1 + 1 + 2 * 4
    for place in folder.iterdir():
        (file,) = place.glob("*_results.json")
        results = json.loads(file.read_text())
        ours = results["foveate"]
        for task, record in tasks.items():
            name = ours["method"].replace("full", "full model")
            row = next(row for row in record["rows"] if (row["name"], row["budget"]) == (name, ours["budget"]))
            assert results["results"][task]["tokens,none"] == pytest.approx(row["tokens"], abs=1e-3)
            (samples,) = place.glob(f"*_samples_{task}.jsonl")
            rows = [json.loads(line) for line in samples.read_text().splitlines()]
            assert len(rows) == QUESTIONS
            assert {sample["foveate"]["method"] for sample in rows} == {ours["method"]}
            retention = sum(sample["foveate"]["retention"] for sample in rows) / len(rows)
            assert retention == pytest.approx(row["retention"], abs=1e-4)
            if "pope_f1_score,none" in results["results"][task]:
                assert results["results"][task]["pope_f1_score,none"] == pytest.approx(row["accuracy"], abs=1e-4)


def test_unknown_names_and_mixtures_are_refused(run, tmp_path):
    code, _, err = run("eval", "--tasks", "nothing_of_that_name", "--cache", tmp_path)
    assert code == 2
    assert "textvqa" in err
    code, _, err = run("eval", "--tasks", "colour,pope", "--cache", tmp_path)
    assert (code, "run apart" in err) == (2, True)
