"""The authors' code beside foveate: what needs none of their repositories."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks/peers"


@pytest.fixture(scope="module", autouse=True)
def beside():
    """The scripts import one another by their file names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
        for name in ("run", "ours", "peers", "worker"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def run(beside):
    import run

    return run


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", "-C", folder, *who, *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clone(tmp_path):
    """A repository with one Python file, and a peer at its commit."""
    folder = tmp_path / "Code"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "model.py").write_text("one = 1\n")
    (folder / "picture.png").write_text("...")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "One")
    from peers import Peer

    return folder, Peer("authors/Code", git(folder, "rev-parse", "HEAD").strip(), "v2drop", {})


def test_a_clone_at_its_commit_is_right(run, clone):
    folder, peer = clone
    (folder / "picture.png").unlink()  # only Python files count
    assert run.problems(folder.parent, [peer, peer]) == []


def test_a_missing_clone_is_named_with_the_command(run, clone):
    folder, peer = clone
    (problem,) = run.problems(folder, [peer])
    assert f"git clone https://github.com/authors/Code {folder / 'Code'}" in problem
    assert peer.commit in problem


def test_another_commit_is_named(run, clone):
    folder, peer = clone
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "Two")
    head = git(folder, "rev-parse", "HEAD").strip()
    (problem,) = run.problems(folder.parent, [peer])
    assert f"is at {head}, not at {peer.commit}" in problem


def test_a_changed_file_is_named(run, clone):
    folder, peer = clone
    (folder / "model.py").write_text("one = 2\n")
    (problem,) = run.problems(folder.parent, [peer])
    assert "model.py" in problem


def test_an_untouched_model_of_another_repository_is_looked_for_too(run, tmp_path):
    found = " ".join(run.problems(tmp_path, [run.PEERS["MustDrop"]]))
    assert "liuting20/MustDrop" in found
    assert "Cooperx521/PyramidDrop" in found


def round_of(run, authors, foveate):
    """A round in which the methods take these shares of the untouched models' times."""
    answers = {}
    for side, base, share in ((run.AUTHORS, 2.0, authors), (run.FOVEATE, 3.0, foveate)):
        for arm in run.ARMS:
            seconds = base * share if arm == run.METHOD else base
            answers[run.name_of(side, arm)] = dict.fromkeys(run.PARTS, seconds) | {"peak": 100 * seconds, "faults": 7}
    return answers


def test_speed_ups_are_over_each_sides_own_untouched_model(run):
    figures = run.figures([round_of(run, 1 / 2, 1 / 3)] * 6, limit=4)
    for part in run.PARTS:
        speed_up = {side: row["median"] for side, row in figures[part]["speed-up"].items()}
        assert speed_up == pytest.approx({run.AUTHORS: 2, run.FOVEATE: 3})
        assert figures[part]["foveate's / authors' speed-up"]["median"] == pytest.approx(1.5)
        assert figures[part]["foveate's / authors' time"][run.UNTOUCHED]["median"] == pytest.approx(1.5)
        assert figures[part]["untouched again / untouched"][run.AUTHORS]["median"] == 1
    assert figures["share of the limit"] == pytest.approx({run.AUTHORS: 0.5, run.FOVEATE: 0.75})
    assert figures["peak, MiB"]["foveate, method"] == pytest.approx(100)


def test_the_limit_counts_flops_layer_by_layer(run):
    half = [run.VISION] * (run.LAYERS // 2) + [0] * (run.LAYERS // 2)
    rest = run.flops([0] * run.LAYERS) / 2
    assert run.flops(half) == pytest.approx(run.flops(None) / 2 + rest)


@pytest.mark.parametrize(
    ("prefill", "decoding", "words"),
    [
        (1e-6, 2e-6, "as alone, to 2e-06"),
        (0.19, 0.2, "**wrong**: logits move by 0.19"),
        (1e-6, "IndexError: index 3 is out of bounds", "prefill right, **decoding fails**: IndexError"),
        (1e-6, 0.5, "prefill right, **decoding wrong**: logits move by 0.5"),
        ("ValueError: shapes", "ValueError: shapes", "prefill fails: ValueError"),
    ],
)
def test_words_for_a_batch(run, prefill, decoding, words):
    assert run.batch_words({"batch, prefill": prefill, "batch, decoding": decoding}) == words


def test_a_run_goes_on_where_it_stopped(run, tmp_path, monkeypatch):
    """The second run starts processes only for what is missing, and never measures checks twice."""
    asked = []

    class Side:
        def __init__(self, command, log, **environment):
            self.versions = {"torch": "1"}

        def ask(self, arm, **request):
            asked.append(arm)
            return {"logits": [[[0.0]] * 2] * 2, "tokens": [1] * 6, "calls": 9}

        def time(self, arm):
            asked.append(arm)
            return dict.fromkeys((*run.PARTS, "peak", "faults"), 1.0)

        def close(self):
            pass

    monkeypatch.setattr(run, "Worker", Side)
    options = SimpleNamespace(rounds=2, work=tmp_path, python="python", repositories=tmp_path, keep_memory=False)
    path = tmp_path / "rounds.jsonl"
    run.measure("V2Drop", options, run.Progress(path))
    first = len(asked)
    run.measure("V2Drop", options, run.Progress(path))
    assert len(asked) == first
    options.rounds = 3
    run.measure("V2Drop", options, run.Progress(path))
    assert len(asked) == first + 2 * len(run.ARMS) * 2  # a warm-up and a round
    done = run.Progress(path).of("V2Drop")
    assert len(done["rounds"]) == len(done["load"]) == 3
    calls = {f"calls of Python in a step, {arm}": 9 for arm in (run.UNTOUCHED, run.METHOD)}
    assert done["checks"][run.FOVEATE] == {"batch, prefill": 0, "batch, decoding": 0, "cache": 0, **calls}


def test_rounds_of_another_commit_are_refused(run, tmp_path, monkeypatch):
    path = tmp_path / "rounds.jsonl"
    run.Progress(path)
    monkeypatch.setattr(run, "commit", lambda: "another")
    with pytest.raises(SystemExit, match="Delete it"):
        run.Progress(path)


def test_foveates_side_answers_requests(run, tmp_path, monkeypatch):
    """On a narrow model: a batch gives what a sample alone gives, and the method processes fewer tokens."""
    import worker

    for name, value in {"WIDTH": 24, "HEADS": 2, "MLP": 16, "LAYERS": 5, "VOCABULARY": 400, "IMAGE": 399}.items():
        monkeypatch.setattr(worker, name, value)
    import ours

    ours.make(tmp_path)
    monkeypatch.setitem(ours.PEERS["FastV"].settings, "layers", [2])
    arm, marks = ours.arms_of("FastV", tmp_path)["method"], worker.Marks()
    marks.watch(arm)
    with torch.no_grad():
        one = worker.answer(arm, marks, {"tokens": 3, "pictures": [1], "logits": True})
        long = worker.answer(arm, marks, {"tokens": 15, "calls": True})
        two = worker.answer(arm, marks, {"tokens": 3, "pictures": [0, 1], "logits": True})
    assert one["layer_tokens"] == [576, 576, 144, 144, 144]
    assert 0 < one["decoder"] < one["ttft"]
    assert one["faults"] >= 0
    assert "calls" not in one
    assert long["calls"] > 1000
    assert len(one["tokens"]) == 3
    assert run.largest(one["logits"][0][0], two["logits"][0][1]) < 1e-5
    assert run.largest(one["logits"][0][0], two["logits"][0][0]) > 1e-4


def test_every_peers_setting_is_one_of_foveates(run):
    import foveate as fv

    for peer in run.PEERS.values():
        fv.methods()[peer.method](**peer.settings)


def test_the_page_has_the_tables_of_the_record(run):
    record = json.loads(run.RECORD.read_text())
    page = run.PAGE.read_text()
    assert run.filled(page, record) == page
