"""A batch with a second look: columns that say so, a kill between the looks, and rows that are not like the samples."""

import faulthandler
import os
import signal
from dataclasses import replace

import pytest

import foveate as fv
from foveate.ask import answers
from foveate.ask.second_look import Promise
from foveate.batch.job import Job, run
from foveate.batch.rows import Predictor
from foveate.naming import parse
from tests.batch.conftest import bad_in, here, rows_in
from tests.batch.test_job import FORKS

ROWS = 30


@pytest.fixture(scope="module")
def confidences(vlm, asking, pictures):
    method = parse("v2drop:layers=1,2,3;keep=0.5,0.3,0")
    rows = [
        vlm.ask(str(pictures / f"{number}.png"), "What is this", method=method, sure=0.0, max_new_tokens=4).confidence
        for number in range(10)
    ]
    return sorted(rows)


@pytest.fixture
def look(confidences):
    """Trusts about half of the answers."""
    return fv.SecondLook(method=parse("v2drop:layers=1,2,3;keep=0.5,0.3,0"), sure=sum(confidences[4:6]) / 2)


def test_rows_say_how_sure_they_were_and_are_what_ask_says(questions, answer, look, vlm, pictures, tmp_path):
    path = questions(ROWS)
    summary = answer(path, method=look)
    rows = rows_in(tmp_path / "out")
    again = [row["again"] for row in rows.values()]
    assert 0 < sum(again) < len(rows)
    assert summary.again == pytest.approx(sum(again) / len(rows))
    assert summary.strange is None
    for row in list(rows.values())[:8]:
        alone = vlm.ask(row["image"], row["question"], method=look, max_new_tokens=4)
        assert (row["answer"], row["again"]) == (alone.text, alone.again)
        assert row["confidence"] == pytest.approx(alone.confidence, rel=1e-4)
        assert row["tokens"] == pytest.approx(alone.spent, abs=1e-5)
        assert row["retention"] == pytest.approx(alone.retention, abs=1e-5)
    assert len(bad_in(tmp_path / "out")) == ROWS // 7


@FORKS
def test_a_run_that_is_killed_between_the_two_looks_goes_on(questions, answer, look, asking, vlm, tmp_path):
    path = questions(ROWS)
    answer(path, out="whole", method=look)
    whole = rows_in(tmp_path / "whole")
    job = Job(input=path, out=tmp_path / "out", asking=replace(asking, method=look))
    child = os.fork()
    if child == 0:
        try:
            faulthandler.disable()
            answered = answers.answers_to

            def deadly(loaded, prompts, method, *given, **options):
                if method is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return answered(loaded, prompts, method, *given, **options)

            answers.answers_to = deadly
            run(job, here(job.asking, vlm))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    kept = rows_in(job.out)
    assert 0 < len(kept) < len(whole)
    assert not any(row["again"] for row in kept.values())  # nobody's answer is an unsure one
    summary = run(job, here(job.asking, vlm))
    assert summary.left == 0
    rows = rows_in(job.out)
    assert [(row["answer"], row["again"]) for row in map(rows.get, sorted(rows))] == [
        (row["answer"], row["again"]) for row in map(whole.get, sorted(whole))
    ]


def promised(look, again, conditions):
    values = {"agreement": 0.95, "samples": 500, "wrong": 1, "tried": 1, "pictures": 500, "again": again}
    values |= {"tokens": 9.0, "first": 4.0, "full": 9.0}
    values |= {
        "tasks": (),
        "model": "",
        "conditions": conditions,
        "single_turn": True,
        "notes": (),
    }
    return replace(look, promise=Promise(**values, date=""))


def test_rows_that_are_not_like_the_samples_are_told(questions, answer, look, vlm, monkeypatch):
    from foveate.ask.generation import Generation
    from foveate.ask.second_look import conditions_of

    conditions = conditions_of(vlm, Generation(max_new_tokens=4))
    path = questions(ROWS)
    summary = answer(path, method=promised(look, 0.01, conditions))
    assert "not like the samples" in summary.strange
    assert summary.to_dict()["strange"] == summary.strange


def test_another_model_than_the_calibrations_is_refused_before_the_first_row(asking, look, vlm):
    with pytest.raises(fv.SettingError, match="another model"):
        Predictor(replace(asking, method=promised(look, 0.1, {"model": "another"})), vlm=vlm)
