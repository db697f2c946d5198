"""The day on a GPU: cells that fail are named, what is done is not run twice, and the page has it all."""

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
        "--task", "pope_full", "gqa", "--method", "v2drop", "--draws", "2", "--model", "embedded", "cpu-small",
        "--vllm", str(tmp_path / "python"),
    ]  # fmt: skip
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


# -- half an hour, and what others send -------------------------------------------------------------------------------


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
        (lambda record: record.update(model=["/home/me/model"]), "hub id"),
        (lambda record: record.update(weights=None), "weights"),
        (lambda record: record.update(tasks={}), "no benchmark"),
        (lambda record: record["tasks"]["pope"].pop(1), "retention=1"),
        (lambda record: record["tasks"]["pope"][4].update(tokens=None), "divprune"),
        (lambda record: record["tasks"]["pope"][4].update(tokens=200.0), "spent 200.0"),
    ],
)
def test_a_record_without_what_makes_it_evidence_is_refused(change, says, real, shared):
    change(shared)
    assert any(says in fault for fault in real["records"].faults(shared))
