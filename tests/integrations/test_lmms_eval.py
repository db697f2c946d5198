"""lmms-eval's own command line, on drawn benchmarks, offline: it finds the model and says what `harness.run` says."""

import json
import subprocess
import sys
from statistics import mean

import pytest

from foveate.ask import templates
from foveate.ask.loading import load
from foveate.ask.vlm import VLM
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.eval.lmms.answerer import Answerer, Conduct
from foveate.eval.lmms.harness import Options, run
from foveate.eval.lmms.setting import Setting
from foveate.eval.store import open_answers
from foveate.integrations.lmms_eval import manifest
from tests.integrations.conftest import QUESTIONS

NAMES = ("foveate_mme", "foveate_textvqa")
SETTING = Setting(name="v2drop:metric=cosine", budget=192)


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def found(loaded, tasks, tmp_path_factory):
    """What `harness.run` says, one question at a time: of the full model, and of the setting."""
    options = Options(include=(tasks,))
    with open_answers(options.conduct.conditions(loaded), tmp_path_factory.mktemp("store")) as store:
        full = run(loaded, NAMES, options=options, store=store)
        return full, run(loaded, NAMES, SETTING.choice(loaded.model.config), options=options, store=store)


@pytest.fixture(scope="module")
def written(tasks, offline, tmp_path_factory):
    """What `python -m lmms_eval` leaves in two processes: its folder, what it prints, and the folder of its log."""
    out, log = tmp_path_factory.mktemp("written"), tmp_path_factory.mktemp("log")
    words = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--rdzv_backend=c10d"]
    words += ["--rdzv_endpoint=localhost:0", "--no_python", sys.executable]
    words += ["-m", "lmms_eval", "--model", "foveate", "--tasks", ",".join(NAMES), "--include_path", str(tasks)]
    words += ["--model_args", f"pretrained=embedded,method=v2drop:metric=cosine,budget=192,log={log}"]
    words += ["--batch_size", "3", "--output_path", str(out), "--log_samples"]
    done = subprocess.run([sys.executable, *words], env=offline, cwd=out, capture_output=True, text=True, timeout=300)
    folders = list(out.glob("embedded*"))  # beside one for submissions
    assert len(folders) == 1, done.stdout + done.stderr
    return folders[0], done.stdout, log


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


def test_lmms_eval_finds_the_model_by_its_entry_point(offline):
    from lmms_eval.models import get_model

    from foveate.eval.lmms.backend import Foveate

    assert get_model("foveate") is Foveate


@pytest.mark.parametrize(
    ("said", "setting"),
    [
        ("method=v2drop:layers=3,7;keep=0.5,0.3", Setting(name="v2drop:layers=3,7;keep=0.5,0.3")),
        (
            '{"method":{"method":"v2drop","layers":[3,7],"keep":[0.5,0.3]}}',
            Setting(name="v2drop:layers=3,7;keep=0.5,0.3"),
        ),
        (
            'pretrained=embedded,method=visiondrop+v2drop,retention=0.2,settings={"metric":"cosine","layers":[3]}',
            Setting(name="visiondrop+v2drop:metric=cosine;layers=3", retention=0.2),
        ),
    ],
)
def test_model_args_take_chains_lists_and_json(said, setting, loaded, monkeypatch):
    from foveate.eval.lmms import backend

    monkeypatch.setattr(backend, "load", lambda *_, **__: loaded)
    model = backend.Foveate.create_from_arg_string(said, {"batch_size": "1"})
    assert model.answerer.choice.method(576) == setting.choice(loaded.model.config).method(576)


HOLD = """
import sys, filelock
own = filelock.FileLock(sys.argv[1])
own.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_log_that_another_run_uses_is_refused(loaded, tmp_path, monkeypatch, capsys):
    from foveate.eval.lmms import backend

    monkeypatch.setattr("foveate.runs.store.PATIENCE", 0.3)
    monkeypatch.setattr(backend, "load", lambda *_, **__: loaded)
    backend.Foveate(log=str(tmp_path)).clean()
    (lock,) = tmp_path.glob("*/.lock")
    words = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(SystemExit) as ended:
            backend.Foveate.create_from_arg_string(f"log={tmp_path}", {"batch_size": "4"})
        other.stdin.close()
    assert ended.value.code == 1
    waits, refuses = capsys.readouterr().err.splitlines()
    assert "waiting up to 0.3 s" in waits
    assert refuses.startswith(f"foveate: {lock.parent} is in use by another run")
    backend.Foveate(log=str(tmp_path)).clean()


def test_two_processes_in_batches_say_what_run_says_one_by_one(found, written):
    folder, _, log = written
    figures = results_in(folder)["results"]
    for name, task in found[1].tasks.items():
        answers = {row["doc_id"]: row["filtered_resps"] for row in samples_in(folder, name)}
        assert answers == dict(zip(task.documents, (row["answer"] for row in task.records), strict=True))
        for metric in task.metrics.values():
            assert figures[name][f"{metric.name},none"] == pytest.approx(metric.value)
    rows = [json.loads(line) for file in log.glob("*/part-*.jsonl") for line in file.read_text().splitlines()]
    assert len(rows) == len(NAMES) * QUESTIONS
    assert {round(row["spent"]) for row in rows} == {192}
    assert {round(row["retention"], 3) for row in rows} == {0.333}


def test_results_samples_and_table_say_what_was_asked_and_spent(written):
    folder, shown, _ = written
    assert folder.name == "embedded__v2drop-metric=cosine__192-tokens"
    results = results_in(folder)
    ours = results["foveate"]
    assert results["model_name"] == "embedded"
    assert (ours["method"], ours["budget"], ours["asked_retention"]) == ("v2drop:metric=cosine", 192, None)
    assert ours["tokens"] == pytest.approx(192, abs=1)
    assert ours["retention"] == pytest.approx(1 / 3, abs=0.01)
    for key in ("tokens", "retention"):
        assert ours[key] == pytest.approx(mean(results["results"][name][f"{key},none"] for name in NAMES))
    for name in NAMES:
        rows = [row["foveate"] for row in samples_in(folder, name)]  # of all processes
        assert len(rows) == QUESTIONS
        for row in rows:
            assert (row["method"], row["budget"]) == ("v2drop:metric=cosine", 192)
            assert row["tokens"] == pytest.approx(192, abs=1)
            assert row["retention"] == pytest.approx(row["tokens"] / 576)
    table = [line.replace(" ", "") for line in shown.splitlines() if line.startswith("|")]
    assert any("|retention|" in line and "|0.33" in line for line in table)
    assert any("|tokens|" in line and "|19" in line for line in table)


def test_every_sample_is_told_apart_and_paired_with_the_full_model(found):
    full, cut = found
    for name in NAMES:
        one, other = full.tasks[name], cut.tasks[name]
        assert one.documents == other.documents == tuple(range(QUESTIONS))
        assert one.retention == 1
        assert other.retention == pytest.approx(1 / 3, abs=0.01)
        assert all(row["kl"] >= 0 for row in other.records)
        for key, metric in other.metrics.items():
            assert metric.groups == one.metrics[key].groups
            assert metric.over([1] * (max(metric.groups) + 1)) == pytest.approx(metric.value)
    pairs = cut.tasks["foveate_mme"].metrics["mme_perception_score"]
    assert pairs.groups == (0, 0, 1, 1)
    assert pairs.over([2, 0]) in (0, 50, 100, 200)


def test_a_second_run_asks_nothing(found, loaded, tasks, tmp_path, monkeypatch):
    options = Options(conduct=Conduct(batch_size=2), include=(tasks,), limit=4)
    with open_answers(options.conduct.conditions(loaded), tmp_path) as store:
        first = run(loaded, ["foveate_textvqa"], options=options, store=store)
        monkeypatch.setattr(VLM, "answer_batch", None)
        assert run(loaded, ["foveate_textvqa"], options=options, store=store).to_dict() == first.to_dict()
    assert first.tasks["foveate_textvqa"].documents == (0, 1, 2, 3)
    whole = [row["answer"] for row in found[0].tasks["foveate_textvqa"].records]
    assert [row["answer"] for row in first.tasks["foveate_textvqa"].records] == whole[:4]


def test_the_llava_protocol_puts_ocr_tokens_into_textvqas_prompt(loaded, tasks, monkeypatch):
    told = []

    def encode(model, processor, conversation):
        told.append(conversation.turns[0][1][-1][1])
        return encoder(model, processor, conversation)

    encoder = templates.PROTOCOLS["llava"]
    monkeypatch.setattr(templates, "PROTOCOLS", {**templates.PROTOCOLS, "llava": encode})
    options = Options(conduct=Conduct(protocol="llava"), include=(tasks,), limit=1)
    scores = run(loaded, ["foveate_textvqa", "foveate_pope"], options=options)
    assert scores.protocol == scores.to_dict()["protocol"] == "llava"
    assert sum("\nReference OCR token: " in text for text in told) == 1


def test_data_that_cannot_be_read_are_named(loaded, tmp_path, tasks, monkeypatch):
    from lmms_eval.api.task import ConfigurableTask

    monkeypatch.setattr(ConfigurableTask.download.retry, "sleep", lambda seconds: None)
    text = (tasks / "gqa/foveate_gqa.yaml").read_text()
    (tmp_path / "foveate_lost.yaml").write_text(text.replace("foveate_gqa", "foveate_lost"))
    with pytest.raises(
        InputError, match=r"The data of foveate_lost cannot be read: FileNotFoundError: .*hf auth login"
    ):
        run(loaded, ["foveate_lost"], options=Options(include=(tmp_path,)))


def test_half_a_pair_is_refused_in_words(loaded, tasks):
    with pytest.raises(InputError, match=r"pairwise.*A limit must not cut"):
        run(loaded, ["foveate_mme"], options=Options(include=(tasks,), limit=3))


def test_arguments_that_cannot_be_meant_are_refused():
    from foveate.eval.lmms.backend import Foveate

    with pytest.raises(SettingError, match="batch_size is a number; got 'auto'"):
        Foveate(batch_size="auto")
    with pytest.raises(SettingError, match="without a method"):
        Foveate(budget=192)
    with pytest.raises(UnsupportedError, match="no number format float12"):
        Foveate(dtype="float12", device="cpu")


def test_tasks_that_are_not_answered_in_words_are_refused(loaded):
    from foveate.eval.lmms.backend import Answering

    model = Answering(Answerer(loaded))
    with pytest.raises(UnsupportedError, match="answers in words"):
        model.loglikelihood([])
    with pytest.raises(UnsupportedError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_what_goes_wrong_in_a_run_ends_it_in_one_line(capsys):
    from foveate.eval.lmms.backend import Foveate

    model = Foveate.create_from_arg_string("device=cpu", {"batch_size": "1"})
    for ask in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(SystemExit) as ended:
            ask([])
        assert ended.value.code == 1
    assert capsys.readouterr().err.count("foveate: foveate answers") == 2
    model.answerer = None
    with pytest.raises(AttributeError):
        model.generate_until([None])


@pytest.mark.parametrize(
    ("arguments", "flags", "said"),
    [
        ("metod=v2drop", {}, "No model argument 'metod'. Did you mean method?"),
        ("method=v3drop", {}, "No method 'v3drop'. There are: averagepool"),
        ("method=v2drop/llava-1.5-7b/19", {}, "No preset 'v2drop/llava-1.5-7b/19'. Similar names: v2drop/llava"),
        ("method=v2drop:metrik=l1", {}, "v2drop has no setting metrik."),
        ("method=v2drop:metric=l7", {}, "V2Drop: metric should be"),
        ('method=v2drop,settings={"min_keep":1.5}', {}, "V2Drop: min_keep should be a valid integer; got 1.5."),
        ("method=v2drop,budget=many", {}, "budget is a number; got 'many'."),
        ("method=v2drop,budget=-3", {}, "tokens must be a finite number above 0; got -3."),
        ("method=v2drop,retention=33", {}, "retention must be above 0 and at most 1; got 33."),
        ("method=v2drop,budget=inf", {}, "tokens must be a finite number above 0; got inf."),
        ("max_frames=0", {}, "max_frames is 1 or more; got 0."),
        ("protocol=their", {}, "No protocol 'their'. There are: own, llava."),
        ("device=cpu", {"device": "cpu"}, "device is given twice: as --device, and in model_args."),
        ("", {"batch_size": "auto"}, "batch_size is a number; got 'auto'."),
    ],
)
def test_wrong_arguments_end_in_one_line_and_with_2(arguments, flags, said, capsys, monkeypatch):
    from foveate.eval.lmms import backend

    monkeypatch.setattr(backend, "load", None)  # nothing is loaded before all is understood
    with pytest.raises(SystemExit) as ended:
        backend.Foveate.create_from_arg_string(arguments, {"batch_size": 1, "max_batch_size": None, **flags})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"foveate: {said}")
