"""lmms-eval's own command line, on drawn benchmarks, offline: it finds the model and says what `harness.run` says."""

import json
import socket
import subprocess
import sys
from statistics import mean

import pytest
from filelock import FileLock

from foveate.ask import preparing
from foveate.ask.loading import load
from foveate.errors import BudgetError, InputError, UnsupportedError
from foveate.eval.lmms.harness import run
from foveate.eval.lmms.requests import Conduct
from foveate.eval.lmms.setting import Setting
from foveate.eval.records import open_answers
from foveate.integrations.lmms_eval import manifest
from foveate.runs.store import open_store
from tests.forked import forked
from tests.integrations.conftest import QUESTIONS, index

NAMES = ("foveate_mme", "foveate_textvqa")
PROGRAM = """
import lmms_eval.tasks
from lmms_eval.__main__ import cli_evaluate
lmms_eval.tasks.__file__ = "own/__init__.py"  # its own 1,900 tasks take seconds to read
cli_evaluate()
"""
SETTING = Setting(name="v2drop:metric=cosine", budget=192)


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def found(loaded, tasks, written, tmp_path_factory):
    """What `harness.run` says, one question at a time: of the full model, and of the setting.

    It runs behind `written`, whose processes are copies of this one: no copy may use the locks of a run.
    """
    conduct = Conduct(include=(tasks,))
    with open_answers(conduct.conditions(loaded), tmp_path_factory.mktemp("store")) as store:
        full = run(loaded, NAMES, conduct=conduct, store=store)
        return full, run(loaded, NAMES, SETTING.method, conduct=conduct, store=store)


@pytest.fixture(scope="module")
def written(tasks, offline, tmp_path_factory):
    """What lmms-eval leaves in two processes: its folder, what the first prints, and the folder of its log."""
    out, log = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("log")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    words = ["--model", "foveate", "--tasks", ",".join(NAMES), "--include_path", str(tasks)]
    words += ["--model_args", f"pretrained=embedded,method=v2drop:metric=cosine,budget=192,log={log}"]
    words += ["--batch_size", "3", "--output_path", str(out), "--log_samples"]
    processes = [
        forked(
            PROGRAM, *words, cwd=out, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=offline | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]  # fmt: skip
    said = [process.communicate(timeout=300)[0] for process in processes]
    folders = list(out.glob("embedded*"))  # beside one for submissions
    assert len(folders) == 1, "\n".join(said)
    return folders[0], said[0], log


def results_in(folder):
    """The figures of a run."""
    (file,) = folder.glob("*_results.json")
    return json.loads(file.read_text())


def samples_in(folder, name):
    """The samples of a task."""
    (file,) = folder.glob(f"*_samples_{name}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


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
    waits, refuses = capsys.readouterr().err.splitlines()
    assert "waiting up to 0.3 s" in waits
    assert refuses.startswith(f"foveate: {lock.parent} is in use by another run")
    plugin.Foveate(log=str(tmp_path)).clean()


def test_a_log_is_refused_to_a_second_run_also_where_the_harness_shares_locks(tmp_path, monkeypatch):
    from lmms_eval.evaluator import _enable_reentrant_filelocks

    monkeypatch.setattr("foveate.runs.store.PATIENCE", 0.3)
    _enable_reentrant_filelocks()  # as `simple_evaluate` does
    assert FileLock(tmp_path / "one") is FileLock(tmp_path / "one")
    refusal = pytest.raises(InputError, match="is in use by another run")
    with open_store(tmp_path / "log", ("id",)), refusal, open_store(tmp_path / "log", ("id",)):
        pass


def test_two_processes_in_batches_say_what_run_says_one_by_one(found, written):
    folder, _, log = written
    figures = results_in(folder)["results"]
    logs, metrics = found[1]
    for name, rows in logs.items():
        answers = {row["doc_id"]: row["filtered_resps"] for row in samples_in(folder, name)}
        assert answers == {row["document"]: row["answer"] for row in rows}
        whole = sum(figures[name][f"{part},none"] for part in metrics[name].parts)
        assert whole == pytest.approx(metrics[name].value)
    rows = [json.loads(line) for file in log.glob("*/part-*.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) == len(NAMES) * QUESTIONS
    assert {round(row["spent"]) for row in rows} == {192}
    assert {round(row["retention"], 3) for row in rows} == {0.333}


def test_a_file_beside_the_answers_says_what_was_asked_and_spent(written):
    _, shown, log = written
    path = log / "embedded__v2drop-metric=cosine__192-tokens.json"
    ours = json.loads(path.read_text())
    assert (ours["model"], ours["method"], ours["budget"]) == ("embedded", "v2drop:metric=cosine", 192)
    assert ours["tasks"].keys() == set(NAMES)
    for row in (ours, *ours["tasks"].values()):
        assert row["tokens"] == pytest.approx(192, abs=1)
        assert row["retention"] == pytest.approx(row["tokens"] / 576)
    assert ours["answers"] == len(NAMES) * QUESTIONS  # of all processes
    assert "of 576.0 vision tokens a layer: 33." in shown
    assert f"what was asked for and spent is in {path}" in shown


def test_every_sample_is_told_apart_and_paired_with_the_full_model(found):
    (full, _), (cut, metrics) = found
    for name in NAMES:
        assert [row["document"] for row in full[name]] == [row["document"] for row in cut[name]] == [*range(QUESTIONS)]
        assert [row["picture"] for row in full[name]] == [row["picture"] for row in cut[name]]
        assert {row["retention"] for row in full[name]} == {1}
        assert mean(row["retention"] for row in cut[name]) == pytest.approx(1 / 3, abs=0.01)
        assert all(row["kl"] >= 0 for row in cut[name])
        assert metrics[name](cut[name]) == pytest.approx(metrics[name].value)
    pairs = cut["foveate_mme"]
    assert [row["picture"] == pairs[0]["picture"] for row in pairs] == [True, True, False, False]
    assert metrics["foveate_mme"]([*pairs[:2], *pairs[:2]]) in (0, 50, 100, 200)


def test_the_llava_protocol_puts_ocr_tokens_into_textvqas_prompt(loaded, tasks, monkeypatch):
    told = []

    def encode(model, processor, conversation):
        told.append(conversation.turns[0][1][-1][1])
        return encoder(model, processor, conversation)

    encoder = preparing.PROTOCOLS["llava"]
    monkeypatch.setattr(preparing, "PROTOCOLS", {**preparing.PROTOCOLS, "llava": encode})
    conduct = Conduct(protocol="llava", include=(tasks,), limit=1)
    run(loaded, ["foveate_textvqa", "foveate_pope"], conduct=conduct)
    assert sum("\nReference OCR token: " in text for text in told) == 1


def test_data_that_cannot_be_read_are_named(loaded, tmp_path, tasks, monkeypatch):
    from lmms_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask.download.retry, "sleep", lambda seconds: None)
    text = (tasks / "gqa/foveate_gqa.yaml").read_text()
    (tmp_path / "foveate_lost.yaml").write_text(text.replace("foveate_gqa", "foveate_lost"))
    index(tmp_path)
    with pytest.raises(
        InputError, match=r"The data of foveate_lost cannot be read: FileNotFoundError: .*hf auth login"
    ):
        run(loaded, ["foveate_lost"], conduct=Conduct(include=(tmp_path,)))


def test_half_a_pair_is_refused_in_words(loaded, tasks):
    with pytest.raises(InputError, match=r"pairwise.*A limit must not cut"):
        run(loaded, ["foveate_mme"], conduct=Conduct(include=(tasks,), limit=3))


def test_a_number_format_that_there_is_not_is_refused():
    from foveate.eval.lmms.plugin import Foveate

    with pytest.raises(UnsupportedError, match="no number format float12"):
        Foveate(dtype="float12", device="cpu")


def test_what_goes_wrong_in_a_run_ends_it_in_one_line(capsys):
    from foveate.eval.lmms.plugin import Foveate

    model = Foveate.create_from_arg_string("device=cpu", {"batch_size": "1"})
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(SystemExit) as ended:
            ask([])
        assert ended.value.code == 1
    assert capsys.readouterr().err.count("foveate: foveate answers") == 2
    model.answerer = None
    with pytest.raises(AttributeError):
        model.generate_until([None])


def test_a_budget_that_a_sample_cannot_meet_ends_the_run_in_one_line(capsys):
    from foveate.eval.lmms.plugin import Foveate

    def answer(requests):
        raise BudgetError("its floor is 55 tokens", floor=0.1)

    model = Foveate.create_from_arg_string("device=cpu", {"batch_size": "1"})
    model.answerer = answer
    with pytest.raises(SystemExit) as ended:
        model.generate_until([])
    assert ended.value.code in (1, 2)
    assert "foveate: its floor is 55 tokens" in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(
    ("arguments", "flags", "said"),
    [
        ("metod=v2drop", {}, "No model argument 'metod'. Did you mean method?"),
        ("method=v2drop,budget=-3", {}, "tokens must be a finite number above 0; got -3."),
        ("max_frames=0", {}, "max_frames is 1 or more; got 0."),
        ("device=cpu", {"device": "cpu"}, "device is given twice: as --device, and in model_args."),
        ("", {"batch_size": "auto"}, "batch_size is a number; got 'auto'."),
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
