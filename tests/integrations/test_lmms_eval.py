"""lmms-eval's own command line, on drawn benchmarks, offline; and `foveate eval --logs` on what it leaves."""

import json
import socket
import subprocess
import sys
from statistics import mean

import pytest
from filelock import FileLock
from PIL import Image

from foveate import cli
from foveate.ask.loading import load
from foveate.integrations.lmms_eval import manifest
from tests.forked import forked
from tests.integrations.conftest import QUESTIONS

NAMES = ("foveate_mme", "foveate_textvqa")
PROGRAM = """
import lmms_eval.tasks
from lmms_eval.__main__ import cli_evaluate
lmms_eval.tasks.__file__ = "own/__init__.py"  # its own 1,900 tasks take seconds to read
cli_evaluate()
"""
SETTINGS = ("", "method=v2drop:metric=cosine,budget=192", "method=divprune,budget=192")


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def written(tasks, offline, tmp_path_factory):
    """What lmms-eval leaves of each setting, the first two in two processes: folders, what is printed, and a log."""
    out, log = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("log")
    said, folders = [], []
    for number, setting in enumerate(SETTINGS):
        folders.append(out / str(number))
        words = ["--model", "foveate", "--tasks", ",".join(NAMES), "--include_path", str(tasks)]
        words += ["--model_args", f"pretrained=embedded,log={log}{setting and ','}{setting}"]
        words += ["--batch_size", "3", "--output_path", str(folders[-1]), "--log_samples"]
        count = min(2, 3 - number)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        processes = [
            forked(
                PROGRAM, *words, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                env=offline | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(count)
        ]  # fmt: skip
        said.append("".join(process.communicate(timeout=300)[0] for process in processes))
        assert results_in(folders[-1]), said[-1]
    return folders, said, log


def results_in(folder):
    """The figures of a run."""
    (file,) = folder.glob("embedded/*_results.json")
    return json.loads(file.read_text())["results"]


def samples_in(folder, name):
    """The samples of a task."""
    (file,) = folder.glob(f"embedded/*_samples_{name}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def run(capsys):
    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def test_the_manifest_is_free_of_lmms_eval_until_it_is_asked():
    program = "import sys, foveate.integrations.lmms_eval; sys.exit('lmms_eval' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
    assert manifest().model_id == "foveate"


def test_a_log_that_another_run_uses_is_refused(loaded, tmp_path, monkeypatch, capsys):
    from foveate.eval.lmms import plugin

    monkeypatch.setattr("foveate.runs.store.PATIENCE", 0.3)
    monkeypatch.setattr(plugin, "load", lambda *_, **__: loaded)
    plugin.Foveate(log=str(tmp_path)).clean()
    (lock,) = tmp_path.glob("*/.lock")
    with FileLock(lock), pytest.raises(SystemExit) as ended:
        plugin.Foveate.create_from_arg_string(f"log={tmp_path}", {"batch_size": "4"})
    assert ended.value.code == 1
    (refuses,) = capsys.readouterr().err.splitlines()
    assert refuses.startswith(f"foveate: {lock.parent} is in use by another run")
    plugin.Foveate(log=str(tmp_path)).clean()


def test_samples_say_what_their_answers_spent_and_every_answer_is_kept(written):
    folders, said, log = written
    answers = [json.loads(line) for file in log.glob("*/part-*.jsonl") for line in file.read_text().splitlines()]
    assert len(answers) == len(SETTINGS) * len(NAMES) * QUESTIONS
    for folder, printed, tokens in zip(folders, said, (576, 192, 192), strict=True):
        samples = [sample for name in NAMES for sample in samples_in(folder, name)]
        counts = [count for sample in samples for count in sample["token_counts"]]
        assert mean(count["spent"] for count in counts) == pytest.approx(tokens, abs=1)
        assert {count["vision_tokens"] for count in counts} == {576}
        assert f"of 576.0 vision tokens per layer: {tokens / 576:.1%}" in printed
        by_text = sorted(row["answer"] for row in answers if round(row["spent"]) == tokens)
        assert {sample["filtered_resps"] for sample in samples} <= set(by_text)


def test_logs_are_paired_and_say_what_lmms_eval_said(written, run, tasks, tmp_path):
    folders, _, _ = written
    out, drawn = tmp_path / "scores.json", tmp_path / "pareto.png"
    code, said, err = run("eval", "--logs", *folders, "--include", tasks, "--out", out, "--figure", drawn)
    assert code == 0, err
    assert "embedded on foveate_mme: mme_perception_score, 4 documents about 2 pictures" in said
    Image.open(drawn).verify()
    by_task = json.loads(out.read_text())["tasks"]
    assert by_task.keys() == set(NAMES)
    for name, figure in zip(NAMES, ("mme_perception_score,none", "exact_match,none"), strict=True):
        rows = [row for row in by_task[name]["rows"] if row["task"] is None]
        printed = [results_in(folder)[name][figure] for folder in folders]
        assert [row["accuracy"] for row in rows] == [pytest.approx(value, abs=1e-5) for value in printed]
        assert [row["name"] for row in rows] == ["full model", "v2drop:metric=cosine", "divprune"]
        assert [row["tokens"] for row in rows] == [pytest.approx(tokens, abs=1) for tokens in (576, 192, 192)]
        samples = [samples_in(folder, name) for folder in folders[:2]]
        texts = [{sample["doc_id"]: sample["filtered_resps"] for sample in of_run} for of_run in samples]
        agrees = mean(texts[0][document] == texts[1][document] for document in range(QUESTIONS))
        assert rows[1]["agreement"] == agrees
        assert rows[2]["paired"][0]["name"] == "v2drop:metric=cosine"


def test_what_goes_wrong_in_a_run_ends_it_in_one_line(capsys):
    from foveate.eval.lmms.plugin import Foveate

    model = Foveate.create_from_arg_string("device=cpu", {"batch_size": "1"})
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(SystemExit) as ended:
            ask([])
        assert ended.value.code == 1
    assert capsys.readouterr().err.count("cannot run a task") == 2
    model.answerer = None
    with pytest.raises(AttributeError):
        model.generate_until([None])


@pytest.mark.parametrize(
    ("arguments", "flags", "said"),
    [
        ("metod=v2drop", {}, "No model argument 'metod'. Did you mean method?"),
        ("method=v2drop,budget=-3", {}, "Budget: tokens"),
        ("max_frames=0", {}, "model_args: max_frames should be greater than or equal to 1; got 0."),
        ("", {"batch_size": "0"}, "batch_size must be 1 or more; got 0."),
        ("device=cpu", {"device": "cpu"}, "device is given twice: as --device, and in model_args."),
        ("", {"batch_size": "auto"}, "batch_size must be 1 or more; got auto."),
    ],
)
def test_wrong_arguments_end_in_one_line_and_with_2(arguments, flags, said, capsys, monkeypatch):
    from foveate.eval.lmms import plugin

    monkeypatch.setattr(plugin, "load", None)  # nothing is loaded before all is understood
    with pytest.raises(SystemExit) as ended:
        plugin.Foveate.create_from_arg_string(arguments, {"batch_size": 1, "max_batch_size": None, **flags})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"foveate: {said}")
