"""The day on a GPU: cells that fail are named, what is done is not run twice, and the page has it all."""

import csv
import json
import runpy
import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "real"
OK = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('{}')"
WRONG = "import sys; sys.exit('no such benchmark')"
STOPS = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("ended its servers")
"""


@pytest.fixture(scope="module")
def real():
    sys.path.insert(0, str(FOLDER))
    yield runpy.run_path(str(FOLDER / "run.py"))
    sys.path.remove(str(FOLDER))


def row(name, budget, **figures):
    """A row of an evaluation, over all questions."""
    compared = {"share": 0.9, "difference": -0.1, "difference_low": -0.15, "difference_high": -0.05, "agreement": 0.8}
    rest = {"task": None, "tokens": 128.0, "accuracy": 0.7, "hard": 0.5, "hard_questions": 4}
    return {"name": name, "budget": budget, **rest, **compared, **figures}


def test_a_plan_names_every_cell_and_runs_nothing(real, tmp_path, capsys):
    out = tmp_path / "real"
    flags = [
        "--task",
        "pope_full",
        "gqa",
        "--method",
        "v2drop",
        "--draws",
        "2",
        "--model",
        "embedded",
        "cpu-small",
        "--vllm",
        str(tmp_path / "python"),
    ]
    assert real["main"](["--plan", "--out", str(out), *flags]) == 0
    said = capsys.readouterr().out
    cells = [line.split()[:3] for line in said.splitlines() if line.startswith(("  embedded", "  cpu-small"))]
    answered = ["answers"] * (2 + 2 + 2 + 1)
    kinds = ["speed", "batch", "check", *answered, "quality", "sure", "speed", "batch"]
    assert [cell[1] for cell in cells] == kinds
    assert "method=random,retention=0.2222222222222222,seed=1" in said
    assert not out.exists()


def test_a_failed_cell_is_named_and_one_that_is_done_keeps_its_figures(real, tmp_path):
    done, wrong = (real["Cell"]("m", "quality", name, (sys.executable, "-c", code), 9) for name, code in
                   (("good", OK), ("bad", WRONG)))  # fmt: skip
    assert real["run"](done, tmp_path) is None
    assert real["run"](wrong, tmp_path) == "no such benchmark"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "quality-m-bad.log",
        "quality-m-good.json",
        "times.jsonl",
    ]
    assert real["seconds_each"](tmp_path, "quality") != 0.4
    assert real["seconds_each"](tmp_path, "speed") == 0.4


@pytest.fixture
def killed_gently():
    """SIGTERM interrupts, as in a day; Ctrl-C does not where tests run in the background of a shell."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("killed_gently")
def test_a_day_that_is_stopped_stops_its_cell_and_waits_for_its_end(real, tmp_path):
    cell = real["Cell"]("m", "serving", "", (sys.executable, "-c", STOPS), 9)
    with pytest.raises(KeyboardInterrupt):
        real["run"](cell, tmp_path)
    assert (tmp_path / "part-serving-m.json").read_text() == "ended its servers"
    assert not (tmp_path / "serving-m.json").exists()


def test_other_settings_in_the_same_folder_are_refused(real, tmp_path, capsys):
    (tmp_path / "settings.json").write_text('{"method": ["fastv"]}')
    with pytest.raises(SystemExit):
        real["main"](["--out", str(tmp_path), "--model", "cpu-small", "--vllm", "/nowhere"])
    assert "other settings" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_a_model_that_does_not_fit_is_refused(real, monkeypatch):
    assert real["too_large"]("cpu-small") is None
    monkeypatch.setattr("foveate.plain.memory.available", lambda: 2.0**20)
    assert "0.0 GiB are free here. Name a smaller" in real["too_large"]("cpu-small")


def test_the_page_has_every_row_what_is_missing_and_the_papers_own_numbers(real, tmp_path):
    model = "llava-hf/llava-1.5-7b-hf"
    with (ROOT / "benchmarks/published/v2drop.csv").open(newline="") as lines:
        papers = {(one["method"], one["benchmark"], one["budget"]): one for one in csv.DictReader(lines)}
    record = {"commit": "abc", "versions": {"torch": "2"}, "device": "GPU", "model": [model], "method": ["v2drop"]}
    record |= {"retention": [1 / 3], "limit": 8, "missing": {"speed-x": "out of memory"}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    rows = [row("full model", None, share=None, difference=None, agreement=None, hard=None), row("v2drop", 1 / 3)]
    quality = {"tasks": {"gqa": {"rows": rows}}}
    (tmp_path / "quality-llava-hf--llava-1.5-7b-hf.json").write_text(json.dumps(quality))
    page = real["page"].write(tmp_path).read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "70.0 [-15.0, -5.0]" in lines["v2drop"]
    assert "50.0% (4)" in lines["v2drop"]
    assert {"full model", "full model again", "resize", "averagepool"} <= lines.keys()
    assert "- speed-x: out of memory" in page
    printed, whole = papers["V2Drop", "gqa", "192"], papers["full model", "gqa", "576"]
    theirs = float(printed["value"]) / float(whole["value"])
    assert f"| {theirs:.1%} | 90.0% | {100 * (0.9 - theirs):+.1f} |" in lines["V2Drop"]


# -- half an hour, and what others send -------------------------------------------------------------------------------


def test_a_quick_run_is_of_one_model_and_has_the_check_and_the_controls(real, tmp_path, capsys):
    assert real["main"](["--plan", "--quick", "--out", str(tmp_path / "real")]) == 0
    said = capsys.readouterr().out
    cells = [line.split()[:3] for line in said.splitlines() if line.startswith("  llava-hf")]
    assert {cell[0] for cell in cells} == {"llava-hf/llava-1.5-7b-hf"}
    answered = ["answers"] * (2 + 5 + 3)
    assert [cell[1] for cell in cells] == ["speed", "batch", "check", *answered, "quality", "sure"]
    hours = float(said.split("About ")[1].split(" hours")[0])
    assert hours < 1


@pytest.fixture
def shared():
    """A record that is taken."""
    rows = [row("full model", None, tokens=576.0), row("v2drop:retention=1", None, tokens=576.0)]
    rows += [row(name, 2 / 9) for name in ("random", "resize", "divprune")]
    about = {"commit": "abc", "versions": {"torch": "2"}, "device": "GPU", "weights": "a@b", "model": ["a/b"]}
    return {**about, "tasks": {"pope": rows}, "check": {"passed": True}}


def test_a_record_with_its_controls_is_taken_and_shown(real, shared):
    records = real["records"]
    assert list(records.faults(shared)) == []
    text = records.table({"b-gpu": shared}).to_markdown()
    assert "| a/b | GPU | pope | full model again | 576 |" in text
    assert text.count("| b-gpu |") == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record.pop("check"), "foveate check did not pass"),
        (lambda record: record.update(check={"passed": False}), "foveate check did not pass"),
        (lambda record: record.update(model=["/home/me/model"]), "hub id"),
        (lambda record: record.update(weights=None), "its weights"),
        (lambda record: record.update(tasks={}), "no benchmark"),
        (lambda record: record["tasks"]["pope"].pop(0), "full model's tokens were not measured"),
        (lambda record: record["tasks"]["pope"].pop(1), "the control v2drop:retention=1 is missing"),
        (lambda record: record["tasks"]["pope"].pop(2), "the control random is missing"),
        (lambda record: record["tasks"]["pope"].pop(3), "the control resize is missing"),
        (lambda record: record["tasks"]["pope"][4].update(tokens=None), "divprune has no measured tokens"),
        (lambda record: record["tasks"]["pope"][4].update(tokens=200.0), "was asked for 128.0 tokens, and spent 200.0"),
    ],
)
def test_a_record_without_what_makes_it_evidence_is_refused(change, says, real, shared):
    change(shared)
    assert any(says in fault for fault in real["records"].faults(shared))


def test_what_is_stored_is_taken(real):
    records = real["records"]
    assert not any(list(records.faults(record)) for record in records.stored().values())
    assert records.main(["--check"]) == 0


def test_a_run_is_collected_without_answers_and_paths(real, shared, tmp_path):
    record = {name: shared[name] for name in ("commit", "versions", "device", "model")}
    record |= {"retention": [2 / 9], "limit": 100, "missing": {}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    extra = {"settings": ["/home/me"], "note": "", "task": None}
    rows = [{**one, **extra} for one in shared["tasks"]["pope"]] + [row("random", 2 / 9, task="a task")]
    quality = {"tasks": {"pope": {"rows": rows}}}
    (tmp_path / "quality-a--b.json").write_text(json.dumps(quality))
    (tmp_path / "sure-a--b.json").write_text(json.dumps({"weights": "a@b", "rows": []}))
    (tmp_path / "check-a--b.json").write_text(json.dumps({"passed": True, "model": "/home/me/model"}))
    assert real["records"].main([str(tmp_path)]) == 0
    text = (tmp_path / "share.json").read_text()
    assert "/home/me" not in text
    assert len(json.loads(text)["tasks"]["pope"]) == 5


def test_a_benchmarks_answers_say_how_well_they_know_themselves():
    script = runpy.run_path(str(FOLDER / "sure.py"))
    records = []
    for number in range(100):
        question = f"pope/test/{number}/x"
        about = {"question": question, "spent": 64.0, "vision_tokens": 576, "tokens": [1, 2], "setting": {}}
        agrees = number >= 4
        records.append({**about, "method": "full", "answer": "yes", "confidence": 0.9})
        answer = "yes" if agrees else "no"
        records.append({**about, "method": "divprune x", "answer": answer, "confidence": number / 100})
    (found,) = script["rows_of"](records)
    assert (found["task"], found["questions"], found["agreement"], found["auroc"]) == ("pope", 100, 0.96, 1.0)
    assert found["again_in_hindsight"] == 0.02
    assert found["again_promised"] == 1.0  # too few samples to promise anything at 98 %
