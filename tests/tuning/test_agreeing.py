"""A second look from samples of one's own: what is promised, on how many pictures, and when nothing is."""

import json

import pytest

import foveate as fv
from foveate.embedded import TASKS, picture
from foveate.eval.asked import prompts_of
from foveate.eval.held_out import questions
from foveate.naming import method_of
from foveate.plain.stats import bound
from foveate.tuning.agreeing import BUDGETS
from foveate.tuning.parts import by_picture, digest_of
from foveate.tuning.promise import fewest

NEEDED = fewest(0.9)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Where answers are kept."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def vlm():
    return fv.load(device="cpu")


@pytest.fixture(scope="module")
def asked():
    """A question about each of enough pictures, and three more about the first."""
    by_picture = {}
    for question in questions(TASKS, 9 * NEEDED, (77,)):
        by_picture.setdefault(question.picture, []).append(question)
    groups = sorted(by_picture.values(), key=len, reverse=True)[:NEEDED]
    return [*groups[0][:4], *(group[0] for group in groups[1:])]


@pytest.fixture(scope="module")
def prompts(vlm, asked):
    return prompts_of(vlm, asked)


@pytest.fixture(scope="module")
def sure(vlm, asked, prompts):
    tasks = [question.task for question in asked]
    return fv.tune(vlm, prompts, agreement=0.9, method="vidcom2", tokens=64, tasks=tasks)


def test_one_question_of_each_picture_counts_for_the_bound(sure, asked, prompts):
    promise = sure.promise
    assert promise.samples == promise.pictures == NEEDED
    assert not promise.approximate
    assert promise.bound == bound(promise.wrong, NEEDED, 0.1) <= 1 - 0.9
    assert sum(row.questions for row in promise.tasks) == len(prompts)
    assert {row.task for row in promise.tasks} == {question.task for question in asked}
    assert "Approximately" not in sure.sentence
    assert promise.tried == 1


def test_its_figures_are_those_of_asking(vlm, sure, prompts):
    promise = sure.promise
    assert promise.first == 64
    assert promise.full == 576
    assert promise.tokens == pytest.approx(64 + promise.again * 576)
    answer = vlm.ask(picture(), "What is it ?", method=sure)
    assert answer.again == (answer.confidence < sure.sure)


def test_questions_that_share_pictures_make_it_approximate_and_the_file_says_so(vlm, tmp_path):
    by_picture = {}
    for question in questions(TASKS, 9 * NEEDED, (78,)):
        by_picture.setdefault(question.picture, []).append(question)
    asked = [question for group in list(by_picture.values())[:8] for question in group[:4]][: NEEDED + 1]
    sure = fv.tune(vlm, prompts_of(vlm, asked), agreement=0.9, method="vidcom2", tokens=96)
    assert sure.promise.approximate
    assert sure.promise.samples == len(asked)
    assert "Approximately" in sure.sentence
    assert any("not independent" in note for note in sure.promise.notes)
    sure.save(tmp_path / "sure.json")
    assert fv.SecondLook.load(tmp_path / "sure.json").promise.approximate


def test_with_samples_for_one_setting_one_is_tried_and_that_is_said(vlm, prompts):
    sure = fv.tune(vlm, prompts[3:], agreement=0.9)
    assert sure.promise.tried == 1
    assert sure.method == method_of("vidcom2", retention=BUDGETS[0])
    assert any("3 settings need 33 samples" in note for note in sure.promise.notes)


def test_too_few_samples_are_told_how_many_are_missing_before_anything_runs(vlm, prompts):
    calls = []
    with vlm.model.register_forward_pre_hook(lambda *_: calls.append(1)):
        with pytest.raises(fv.SettingError, match=r"needs 114 samples for 1 setting.* got 25: 89 are missing"):
            fv.tune(vlm, prompts, agreement=0.98)
        with pytest.raises(fv.SettingError, match="22 samples"):
            fv.tune(vlm, prompts[:5], agreement=0.9)
        with pytest.raises(fv.SettingError, match="got 5"):  # the same questions again are no more samples
            fv.tune(vlm, prompts[:5] * 9, agreement=0.9)
        with pytest.raises(fv.SettingError, match="between 0 and 1"):
            fv.tune(vlm, prompts, agreement=1.0)
        with pytest.raises(fv.SettingError, match="got 2: 20 are missing"):
            fv.tune(vlm, [(picture(), "What is it ?"), (picture(), "What colour ?")], agreement=0.9, method="vidcom2")
        with pytest.raises(fv.SettingError, match="A sample must be a pair of a picture and a question"):
            fv.tune(vlm, [picture()], agreement=0.9)
    assert not calls


def test_where_nothing_cheap_keeps_it_the_full_model_is_to_be_taken(vlm, prompts):
    with pytest.raises(fv.BudgetError, match="Use the full model"):
        fv.tune(vlm, prompts[3:], agreement=0.9, method="random:layers=0;seed=0", tokens=1)


def test_a_schedule_that_was_tuned_on_these_samples_is_refused(vlm, sure, prompts, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"method": sure.method.to_dict(), "inputs": digest_of(by_picture(prompts))}))
    with pytest.raises(fv.SettingError, match="tuned on these same samples"):
        fv.tune(vlm, prompts, agreement=0.9, method=str(file))


@pytest.mark.parametrize(
    "more",
    [{"task": "x"}, {"flops": 0.5}, {"given": ["keep"]}, {"serach": 1}, {"tasks": ["a"]}, {"tokens": 600.0}],
    ids=str,
)
def test_what_is_for_a_schedule_and_other_counts_than_the_samples_are_refused(more, vlm, prompts):
    with pytest.raises(fv.SettingError):
        fv.tune(vlm, prompts, agreement=0.9, **more)


def test_a_model_without_a_processor_and_samples_that_are_none_are_refused(vlm, prompts):
    with pytest.raises(fv.SettingError, match="VLM"):
        fv.tune(vlm.model, prompts, agreement=0.9)
    with pytest.raises(fv.SettingError):
        fv.tune(vlm, [], agreement=0.9)
