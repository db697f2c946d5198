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
    flags = ["--task", "pope", "gqa", "--model", "embedded", "cpu-small", "--vllm", str(tmp_path / "python")]
    assert real["main"](["--plan", "--out", str(out), *flags]) == 0
    said = capsys.readouterr().out
    cells = [line.split()[:3] for line in said.splitlines() if line.startswith(("  embedded", "  cpu-small"))]
    assert [cell[1] for cell in cells] == ["speed", "batch", "quality", "quality", "speed", "batch"]
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
    quality = {"tasks": {"gqa": {"rows": [*rows, row("random", 1 / 3, infeasible="too few")]}}}
    (tmp_path / "quality-llava-hf--llava-1.5-7b-hf-gqa.json").write_text(json.dumps(quality))
    page = real["page"].write(tmp_path).read_text()
    lines = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "70.0 [-15.0, -5.0]" in lines["v2drop"]
    assert "50.0% (4)" in lines["v2drop"]
    assert "below its floor" in lines["random"]
    assert {"full model", "full model again", "resize", "averagepool"} <= lines.keys()
    assert "- speed-x: out of memory" in page
    printed, whole = papers["V2Drop", "gqa", "192"], papers["full model", "gqa", "576"]
    theirs = float(printed["value"]) / float(whole["value"])
    assert f"| {theirs:.1%} | 90.0% | {100 * (0.9 - theirs):+.1f} |" in lines["V2Drop"]
