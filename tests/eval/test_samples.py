"""Somebody's own pictures and questions: accuracy with labels, agreement without, and what is refused."""

import json
import time

import pytest
from PIL import Image

import foveate as fv
from foveate.embedded import picture
from foveate.errors import InputError
from foveate.eval.evaluation import evaluate_samples
from foveate.eval.plan import Plan
from foveate.runs.listener import Listener
from foveate.runs.samples import samples_in
from tests.eval.test_evaluation import Heard
from tests.forked import kills_of

ROW = {"image": str(picture()), "question": "What colour is the square?"}


@pytest.fixture
def evaluated(tmp_path):
    """Evaluate these rows: the plain values, and the table."""

    def call(*rows, **budget):
        (path := tmp_path / "in.jsonl").write_text("".join(json.dumps({**ROW, **row}) + "\n" for row in rows))
        plan = Plan(methods=("v2drop",), **budget, baselines=False, cache=tmp_path / "kept", max_new_tokens=6)
        quality = evaluate_samples(fv.load(device="cpu"), samples_in(path), plan)
        return quality, [column.head for column in quality.table().columns]

    return call


def test_labels_make_accuracy_and_without_them_it_is_agreement(evaluated):
    quality, heads = evaluated({}, {"question": "How many circles are there?"}, {}, tokens=(64,))
    (ours,) = quality.settings
    assert (quality.full.pictures, quality.full.questions, list(quality.tasks_of(ours))) == (1, 2, ["samples"])
    assert quality.full.accuracy.value == 1
    assert ours.accuracy.value == ours.agreement.value
    assert ("Agreement" in heads, "Agrees" in heads, "Of full" in heads) == (True, False, False)
    quality, heads = evaluated({"label": "Neither.", "task": "colour"}, retention=(0.2,))
    assert quality.tasks_of(quality.full)["colour"].accuracy.value == 0
    assert quality.settings[0].agreement.value == 1
    assert "Accuracy" in heads


def test_rows_that_cannot_be_read_are_left_out_with_their_reasons(evaluated, tmp_path):
    (tmp_path / "damaged.png").write_bytes(picture().read_bytes()[:200])
    quality, _ = evaluated(
        {}, {"question": 7}, {"image": "none.png"}, {"image": "damaged.png"}, {"image": []}, tokens=(64,)
    )
    assert (quality.full.questions, quality.full.pictures) == (1, 1)
    assert [row["row"] for row in quality.to_dict()["bad"]] == [1, 2, 3, 4]
    assert "none.png cannot be read" in quality.origin["bad"][1]["reason"]


def test_a_column_that_is_not_read_is_told_with_the_nearest_that_is(tmp_path):
    (path := tmp_path / "in.jsonl").write_text(json.dumps({**ROW, "id": 1, "lable": "red", "source": "web"}) + "\n")
    plan = Plan(methods=("v2drop",), retention=(0.5,), baselines=False, cache=tmp_path / "kept", max_new_tokens=2)
    evaluate_samples(fv.load(device="cpu"), samples_in(path), plan, listener=(heard := Heard()))
    assert "columns that are not read: lable, source. Did you mean label?" in heard.notes[0]


def test_rows_say_the_tokens_that_were_asked_for(evaluated):
    quality, _ = evaluated({}, {"question": "How many circles are there?"}, tokens=(192, 2))
    assert [row.budget for row in (*quality.settings, *quality.infeasible)] == [192, 2]
    assert {row.budget for row in quality.tasks_of(quality.settings[0]).values()} == {192}
    quality, _ = evaluated({}, retention=(1 / 3,))
    assert quality.settings[0].budget == 1 / 3


@pytest.mark.parametrize(
    ("rows", "error", "says"),
    [
        (({"label": "red"}, {"question": "How many?"}), fv.InputError, "1 of 2 samples have a label"),
        (({"image": "none.png"},), fv.InputError, "none.png cannot be read"),
        (({"question": 7},), fv.InputError, "No row of .*Row 0: A question must be a text"),
        (({"image": [ROW["image"]] * 2},), fv.SettingError, "Prompts differ in vision tokens"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(evaluated, rows, error, says):
    with pytest.raises(error, match=says):
        evaluated(*rows, tokens=(64,))


def test_any_of_a_list_of_labels_is_right(evaluated):
    answer = fv.load(device="cpu").ask(picture(), ROW["question"], max_new_tokens=6).text
    for row in (
        {"label": ["Neither", answer]},
        {"answers": [answer.upper() + ".", "Neither"]},
        {"label": f" {answer} "},
    ):
        quality, _ = evaluated(row, retention=(0.9,))
        assert (quality.figure, quality.full.accuracy.value) == ("Accuracy", 1), row
    quality, _ = evaluated({"label": ["Neither", "Nor"]}, retention=(0.9,))
    assert quality.full.accuracy.value == 0


@pytest.mark.parametrize("label", ["", [], ["", " "], None, [None]])
def test_an_empty_label_is_none(evaluated, label):
    quality, heads = evaluated({"label": label}, retention=(0.9,))
    assert (quality.full.accuracy.value, "Agreement" in heads) == (1, True)


@pytest.mark.parametrize("row", [{"label": {"text": "red"}}, {"label": [["red"]]}, {"label": True}, {"task": {"a": 1}}])
def test_what_is_no_text_is_neither_label_nor_task(evaluated, row):
    with pytest.raises(fv.InputError, match=f"{next(iter(row))} must be a text or a number; got"):
        evaluated(row, retention=(0.9,))


FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
QUESTIONS = (
    "What colour is the square?",
    "What shape is the red object?",
    "How many circles are there?",
    "Is there a red circle?",
    "What does the text say?",
)


@FORKS
def test_an_evaluation_that_is_killed_at_any_moment_says_what_one_run_would_have(tmp_path):
    (path := tmp_path / "in.jsonl").write_text("".join(json.dumps(ROW | {"question": one}) + "\n" for one in QUESTIONS))
    vlm = fv.load(device="cpu")

    def work(folder="out"):
        plan = Plan(methods=("v2drop", "random"), retention=(0.3,), draws=2, cache=tmp_path / folder, max_new_tokens=8)
        return evaluate_samples(vlm, samples_in(path), plan)

    begun = time.monotonic()
    whole = work("whole")
    assert kills_of(work, time.monotonic() - begun)
    assert work().to_dict() == whole.to_dict()
    assert answers_in(tmp_path / "out") == answers_in(tmp_path / "whole")  # nothing was asked twice


def answers_in(folder):
    """What a store has of each method and question, in order."""
    lines = [line for part in folder.glob("*/part-*.jsonl") for line in part.read_text().splitlines()]
    rows = [row for row in map(json.loads, lines) if "question" in row]
    return sorted((row["method"], row["question"], row["answer"]) for row in rows)


def test_no_answer_about_a_picture_is_kept_under_the_name_of_the_one_before(tmp_path):
    (path := tmp_path / "in.jsonl").write_text(json.dumps({"image": "one.png", "question": "What?"}))
    (shown := tmp_path / "one.png").write_bytes(picture().read_bytes())

    class Writing(Listener):
        def stage(self, doing, total, done=0):
            if doing == "Answering":
                Image.new("RGB", (336, 336)).save(shown)
            return super().stage(doing, total, done)

    plan = Plan(methods=("v2drop",), retention=(0.5,), baselines=False, cache=tmp_path / "kept", max_new_tokens=2)
    with pytest.raises(InputError, match="during the run"):
        evaluate_samples(fv.load(device="cpu"), samples_in(path), plan, listener=Writing())
