import json
import re
from dataclasses import asdict

import pytest
from PIL import Image

from foveate.cli import setup
from foveate.embedded import picture
from foveate.eval.records import reservation
from foveate.plain.flags import GraphOptions, ModelOptions
from foveate.runs import store

SMALL = ("--tasks", "colour,read text", "--workers", 1, "--max-new-tokens", 12, "--questions")


def test_a_table_json_and_a_picture_and_nothing_asked_twice(run, tmp_path):
    out, drawn, cache = tmp_path / "quality.json", tmp_path / "pareto.png", tmp_path / "cache"
    asked = (*SMALL, 4, "--method", "v2drop", "--method", "v2drop:reverse=true", "--budget", 64, "--budget", 32)
    code, said, err = run("eval", *asked, "--draws", 2, "--cache", cache, "--out", out, "--figure", drawn)
    assert code == 0, err
    assert "known already" not in err
    names = ("full model", "v2drop:reverse=true", "random", "uniform", "averagepool", "resize")
    assert [word for word in (*names, "infeasible", "≥ 54.9") if word not in said] == []
    assert re.search(r"^v2drop: (better than|worse than|not told apart from) random at \d+ tokens", said, re.MULTILINE)
    few = r"^Only \d+ pictures: with fewer than 30, intervals and verdicts are worth little"
    assert re.search(few, said, re.MULTILINE)
    progress = r"^foveate: Answering: \d+ to do\n(foveate: Answering: .*\n)*foveate: Answering: \d+ done in "
    assert re.search(progress, err, re.MULTILINE)
    found = json.loads(out.read_text())
    full = found["rows"][0]
    assert (full["name"], full["questions"]) == ("full model", 4)
    assert {"weights", "dtype"} <= set(found["model"])
    assert set(found["versions"]) == {"foveate", "torch", "transformers"}
    cells = {(row["name"], row["budget"]): row for row in found["rows"] if row["budget"] and not row["task"]}
    assert [name for (name, _), row in cells.items() if "infeasible" in row] == ["v2drop", "v2drop:reverse=true"]
    assert {("v2drop", 64), ("random", 32)} <= {key for key, row in cells.items() if "infeasible" not in row}
    assert len(cells["random", 64]["draws"]) == len(cells["random", 64]["settings"]) == 2
    ours = cells["v2drop", 64]
    assert ours["tokens"] == pytest.approx(64, abs=1)
    assert "v2drop at 64 tokens: v2drop is not the best choice for so few tokens" in said
    assert None not in (ours["minus_random"], ours["minus_resize"])
    Image.open(drawn).verify()
    code, said, err = run("eval", *asked, "--draws", 2, "--cache", cache, "--json")
    again = json.loads(said)
    assert "known already" in err
    assert again["rows"] == found["rows"]


def test_a_method_that_spends_less_is_held_against_baselines_that_do_too(run, tmp_path):
    asked = (*SMALL, 2, "--method", "mustdrop", "--budget", 400, "--draws", 1, "--cache", tmp_path)
    code, said, err = run("eval", *asked, "--json")
    assert code == 0, err
    cells = [row for row in json.loads(said)["rows"] if row["task"] is None]
    (ours,) = (cell for cell in cells if cell["name"] == "mustdrop")
    assert ours["tokens"] < 350  # the tower's merging leaves less than was asked for
    assert None not in (ours["minus_random"], ours["minus_resize"])
    near = [cell for cell in cells if cell["name"] == "random" and abs(cell["tokens"] / ours["tokens"] - 1) < 0.05]
    assert near


def test_rows_that_cannot_be_read_are_told_and_end_in_3(run, tmp_path):
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"image": str(picture()), "question": "What?"}) + "\n{}\n")
    asked = ("--method", "v2drop", "--no-baselines", "--max-new-tokens", 2, "--cache", tmp_path / "c")
    code, said, err = run("eval", "--samples", path, *asked, "--retention", 0.2, "--json")
    assert (code, [row["row"] for row in json.loads(said)["bad"]]) == (3, [1])
    assert "row 1 (from 0) is left out: The row has nothing under" in err


def test_what_accuracy_cannot_say_is_said_and_methods_stand_beside_each_other(run, tmp_path):
    labels = {"What colour is the circle?": "Mauve", "What colour is the square?": "Mauve", "What is it?": "Nothing"}
    rows = [{"image": str(picture()), "question": question, "label": label} for question, label in labels.items()]
    (path := tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("--samples", path, "--method", "v2drop", "--method", "fastv", "--no-baselines", "--max-new-tokens", 2)
    asked = (*asked, "--retention", 0.2, "--cache", tmp_path / "c", "--out", tmp_path / "out.json")
    code, said, err = run("eval", *asked, "--figure", tmp_path / "figure.png")
    assert code == 0, err
    sentence = "Accuracy says nothing here: "
    assert sentence in " ".join(said.split())
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["notes"][0].startswith(sentence)
    assert "Beside v2drop, on the same questions" in said
    (pair,) = found["rows"][-2]["paired"]
    assert (pair["name"], pair["accuracy"]) == ("v2drop", 0)
    assert "-0.0" not in said + (tmp_path / "out.json").read_text()


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_record_says_that_prompts_ran_as_graphs(run, tmp_path, monkeypatch):
    asked = (*SMALL, 2, "--method", "v2drop", "--retention", 0.3, "--no-baselines", "--json", "--cache", tmp_path)
    plain, graphed = (json.loads(run("eval", *asked, *flag)[1]) for flag in ((), ("--cuda-graphs",)))
    assert graphed["model"].pop("cuda_graphs")
    assert plain["model"] == graphed["model"]
    assert [row["accuracy"] for row in plain["rows"]] == [row["accuracy"] for row in graphed["rows"]]


def test_graphs_are_refused_where_there_are_none(run):
    code, out, err = run("eval", *SMALL, 2, "--device", "cpu", "--cuda-graphs")
    assert (code, out) == (2, "")
    assert "CUDA" in err


def test_a_folder_in_use_is_told_before_the_model_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    monkeypatch.setattr(setup, "load", lambda models: pytest.fail("loaded"))
    asked = {
        "eval": (GraphOptions(), "--tasks", "colour", "--questions", 2),
        "tune": (ModelOptions(), picture(), "--prompt", "What?", "--budget", 64),
    }
    for command, (models, *words) in asked.items():
        with reservation(asdict(models), tmp_path, str):
            code, _, err = run(command, *words, "--cache", tmp_path)
        assert code == 1
        assert "in use" in err
