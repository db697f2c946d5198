"""A second look in an evaluation: a row of its own, made of answers that are there, which are what asking gives."""

from math import isnan

import pytest

import foveate as fv
from foveate.eval.evaluation import evaluate
from foveate.eval.plan import Plan
from foveate.eval.quality import tables_of
from foveate.eval.records import record_of_both
from foveate.naming import method_of

QUICK = {"answer": "a", "confidence": 0.5, "spent": 64.0, "vision_tokens": 576, "flops": 10, "new_tokens": 2, "kl": 0.3}
FULL = QUICK | {"answer": "b", "confidence": 0.9, "spent": 576.0, "flops": 100, "new_tokens": 3}


def test_of_two_answers_the_trusted_one_counts_or_both_cost():
    assert record_of_both(QUICK, FULL, 0.5) == {**QUICK, "again": 0.0}
    again = record_of_both(QUICK, FULL, 0.51)
    assert (again["answer"], again["spent"], again["flops"], again["kl"], again["again"]) == ("b", 640.0, 110, 0.0, 1.0)
    assert again["new_tokens"] == 5
    assert record_of_both({**QUICK, "flops": None}, FULL, 0.51)["flops"] is None
    assert record_of_both({**QUICK, "confidence": float("nan")}, FULL, 0.0)["again"] == 1.0
    assert record_of_both({**QUICK, "vision_tokens": 0}, FULL, 1.0)["again"] == 0.0


@pytest.fixture(scope="module")
def vlm():
    return fv.load()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("looks") / "sure.json"
    fv.SecondLook(method=method_of("vidcom2", tokens=16), sure=0.7).save(path)
    return str(path)


def test_a_second_look_is_a_row_with_a_column(vlm, file, tmp_path):
    plan = Plan(methods=(file, "vidcom2"), tokens=(16,), baselines=False, cache=tmp_path)
    quality = evaluate(vlm, ("count", "read text", "colour"), plan, count=24)
    rows = {row.name: row for row in quality.settings}
    look, alone = rows["vidcom2 16, else full"], rows["vidcom2"]
    assert 0 < look.again < 1
    assert isnan(alone.again)
    assert look.tokens == pytest.approx(16 + look.again * 576, abs=0.01)
    assert look.flops == pytest.approx(alone.flops + look.again, abs=1e-4)
    assert look.agreement.value >= alone.agreement.value
    table = quality.table()
    assert "Again" in [getattr(column, "head", column) for column in table.columns]
    assert "both answers" in " ".join(tables_of([quality])[-1].notes)
    assert fv.SecondLook.load(file).name in table.to_text(width=200)


def test_its_answers_are_what_asking_gives(vlm, file, tmp_path):
    from foveate.eval.asked import prompts_of
    from foveate.eval.held_out import questions

    asked = questions(("count", "read text"), 8, (3,))
    plan = Plan(methods=(file,), baselines=False, cache=tmp_path)
    quality = evaluate(vlm, ("count", "read text"), plan, count=8, seeds=(3,))
    look = fv.SecondLook.load(file)
    answers = [
        vlm.ask(question.media(), prompt.text, method=look)
        for question, prompt in zip(asked, prompts_of(vlm, asked), strict=True)
    ]
    (row,) = quality.settings
    assert row.again == pytest.approx(sum(answer.again for answer in answers) / len(answers), abs=1e-5)
    right = [answer.text in question.labels for question, answer in zip(asked, answers, strict=True)]
    assert row.accuracy.value == pytest.approx(sum(right) / len(right), abs=1e-5)
