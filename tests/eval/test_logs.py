"""Sample logs of lmms-eval, written here as it writes them: what is paired, and what is refused."""

import json
import re
import shutil
from math import isnan

import pytest

from foveate.errors import InputError
from foveate.eval.lmms.logs import compare_logs


@pytest.fixture(scope="module")
def include(root, tmp_path_factory):
    """The folder of the drawn tasks, without their data; lmms-eval's own tasks, which take seconds, are not read."""
    tasks = pytest.importorskip("lmms_eval.tasks")
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "__file__", str(folder / "__init__.py"))
        yield [root / "benchmarks/tasks"]


def sample(document, answer, truth="yes", spent=576.0):
    """A line of POPE's log."""
    scored = {"question_id": str(document), "score": float(answer == truth)}
    scored |= {"prediction": answer, "ground_truth": truth}
    counts = {"output_tokens": 1, "spent": spent, "vision_tokens": 576, "flops": int(1000 * spent), "media": None}
    names = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score")
    about = {"doc_id": document, "target": truth, "input": f"Question {document}?", "doc_hash": "a"}
    return {**about, "filtered_resps": answer, "token_counts": [counts], **dict.fromkeys(names, scored)}


def f1_of(samples):
    scores = [one["pope_f1_score"] for one in samples]
    hits = sum(one["prediction"] == one["ground_truth"] == "yes" for one in scores)
    said, there = (sum(one[key] == "yes" for one in scores) for key in ("prediction", "ground_truth"))
    return 2 * hits / (said + there)


def write(folder, samples, arguments="pretrained=embedded", task="foveate_pope", **report):
    """A run, as lmms-eval leaves it."""
    place = folder / "embedded"
    place.mkdir(parents=True)
    values = {
        "results": {task: {"alias": task, "pope_f1_score,none": f1_of(samples), "pope_f1_score_stderr,none": "N/A"}},
        "higher_is_better": {task: {"pope_f1_score": True}},
        "configs": {task: {"metadata": [{"version": 1.0}], "generation_kwargs": {"max_new_tokens": 16}}},
        "versions": {task: "Yaml"},
        "n-samples": {task: {"original": len(samples), "effective": len(samples)}},
        "config": {"model": "foveate", "model_args": arguments, "limit": None},
    }
    (place / "20260101_000000_results.json").write_text(json.dumps(values | report))
    lines = "".join(json.dumps(one) + "\n" for one in samples)
    (place / f"20260101_000000_samples_{task}.jsonl").write_text(lines)
    return folder


def answers(*texts, spent=576.0):
    truths = ["yes" if at % 2 else "no" for at in range(len(texts))]
    return [sample(at, text, truth, spent) for at, (text, truth) in enumerate(zip(texts, truths, strict=True))]


@pytest.fixture
def full(tmp_path):
    return write(tmp_path / "full", answers("no", "yes", "no", "yes", "no", "yes", "no", "no"))


@pytest.fixture
def cut(tmp_path):
    samples = answers("no", "yes", "no", "no", "no", "yes", "yes", "no", spent=64.0)
    return write(tmp_path / "cut", samples[::-1], "pretrained=embedded,method=v2drop,budget=64")


def test_documents_are_paired_by_id_and_the_figures_are_lmms_evals(full, cut, include):
    (quality,) = compare_logs([full, cut], include).values()
    assert quality.full.accuracy.value == pytest.approx(6 / 7, abs=1e-5)
    (ours,) = quality.settings
    assert (ours.name, ours.budget, ours.tokens) == ("v2drop", 64, 64)
    assert ours.agreement.value == 6 / 8
    assert ours.accuracy.low <= ours.accuracy.value <= ours.accuracy.high
    assert ours.difference.low <= ours.difference.value < 0
    assert ours.flops == pytest.approx(64 / 576, abs=1e-4)
    assert quality.origin["metric"] == "pope_f1_score"
    assert isnan(ours.kl.value)


def test_logs_that_differ_by_their_seed_are_draws_of_one_method(full, include, tmp_path):
    logs = [
        write(
            tmp_path / str(seed),
            answers(*texts, spent=64.0),
            f"pretrained=embedded,method=random,budget=64,seed={seed}",
        )
        for seed, texts in enumerate((["no", "yes"] * 4, ["no"] * 7 + ["yes"]))
    ]
    (quality,) = compare_logs([full, *logs], include).values()
    (random,) = quality.settings
    assert random.draws == [1.0, pytest.approx(0.4)]
    assert [setting["seed"] for setting in random.settings] == [0, 1]


def change(folder, ending, new):
    """Write another text into a run's file; None removes it."""
    (file,) = folder.glob(f"*/*{ending}")
    text = new(file.read_text())
    file.unlink() if text is None else file.write_text(text)


@pytest.mark.parametrize(
    ("ending", "new", "says"),
    [
        (".jsonl", lambda text: text[:-20], "damaged"),
        (".jsonl", lambda text: text.partition("\n")[2], "7 of 8 documents"),
        (".jsonl", lambda text: "", "damaged"),
        (".jsonl", lambda text: None, "--log_samples"),
        (".jsonl", lambda text: text.replace('"prediction": "yes"', '"prediction": "no"', 4), "answers in the log"),
        (".jsonl", lambda text: text.replace("Question 3?", "Question 33?"), "different documents"),
        (".jsonl", lambda text: re.sub(r"\[{.*?}\]", "[null]", text, count=1), "documents|use_cache"),
        ("results.json", lambda text: None, "0 runs"),
        ("results.json", lambda text: '{"results": {}}', "no results file"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_a_log_that_is_damaged_or_of_other_documents_is_refused(ending, new, says, which, full, cut, include):
    change([full, cut][which], ending, new)
    with pytest.raises(InputError, match=says) as refused:
        compare_logs([full, cut], include)
    assert "\n" not in str(refused.value)


def test_a_folder_of_two_runs_or_of_none_is_refused(full, cut, include):
    (file,) = cut.glob("*/*results.json")
    shutil.copy(file, file.with_name("20260102_000000_results.json"))
    with pytest.raises(InputError, match="2 runs"):
        compare_logs([full, cut], include)
    shutil.rmtree(cut)
    with pytest.raises(InputError, match="0 runs"):
        compare_logs([full, cut], include)


CUT = "pretrained=embedded,method=v2drop,budget=64"


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"task": "foveate_mme"}, "different tasks"),
        ({"versions": {"foveate_pope": "2"}}, "different versions"),
        ({"configs": {"foveate_pope": {"metadata": [{"version": 2.0}]}}}, "different versions"),
        ({"config": {"model": "llava_hf", "model_args": ""}}, "--model llava_hf"),
        ({"arguments": "pretrained=embedded"}, "same setting"),
        ({"arguments": "pretrained=other/model,method=v2drop"}, "pretrained=other/model"),
        ({"arguments": "pretrained=embedded,protocol=llava,method=v2drop"}, "protocol=llava"),
    ],
)
def test_runs_that_cannot_be_paired_are_refused(other, says, full, include, tmp_path):
    other = {"arguments": CUT, **other}
    run = write(tmp_path / "other", answers("no", "yes", "no", "yes", "no", "yes", "no", "no"), **other)
    with pytest.raises(InputError, match=says):
        compare_logs([full, run], include)


def test_the_full_model_is_first_and_no_setting_is_there_twice(full, cut, include):
    with pytest.raises(InputError, match="first log"):
        compare_logs([cut, full], include)
    with pytest.raises(InputError, match="same setting"):
        compare_logs([full, cut, cut], include)


def test_a_task_that_lmms_eval_does_not_know_is_named_with_the_way_out(full, cut, include):
    with pytest.raises(InputError, match=r"foveate_pope.*--include"):
        compare_logs([full, cut])
