import numpy as np
import pytest

from foveate.eval.lmms.scores import Metric


def metric(inputs, aggregate, groups=None):
    groups = tuple(groups or range(len(inputs)))
    return Metric("m", aggregate(inputs), True, tuple(range(len(inputs))), tuple(inputs), groups, aggregate)


def mean(inputs):
    return sum(inputs) / len(inputs)


def f1(inputs):
    hits = sum(one["prediction"] == one["truth"] == "yes" for one in inputs)
    said, there = (sum(one[key] == "yes" for one in inputs) for key in ("prediction", "truth"))
    return 2 * hits / (said + there) if said + there else 0


def pairs(inputs):
    """Accuracy, and that of whole pairs, as MME adds them up; refuses half a pair."""
    by_question = {}
    for one in inputs:
        by_question.setdefault(one["question_id"], []).append(one["score"])
    assert all(len(scores) == 2 for scores in by_question.values())
    return sum(100 * sum(s) / 2 + 100 * (sum(s) == 2) for s in by_question.values()) / len(by_question)


def test_a_mean_is_recognised_and_weighted():
    found = metric([1.0, 0.0, 1.0, 1.0], mean)
    assert found.factor == 1
    assert found.over([1, 1, 1, 1]) == found.value == 0.75
    assert found.over([0, 4, 0, 0]) == 0


def test_a_mean_in_percent_over_groups():
    found = metric([1, 0, 1, 1, 0], lambda ones: 100 * mean(ones), groups=(0, 0, 1, 2, 2))
    assert found.factor == 100
    assert found.over([2, 0, 1]) == pytest.approx(100 * (1 + 0 + 1 + 0 + 1 + 0) / 6)


def test_what_is_no_mean_is_counted_anew():
    both = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"), ("yes", "yes"), ("no", "no"), ("yes", "no")]
    rows = [{"prediction": said, "truth": true, "score": float(said == true)} for said, true in both]
    found = metric(rows, f1)
    assert found.factor is None
    drawn = [2, 0, 1, 1, 3, 0, 1]
    assert found.over(drawn) == f1([row for row, count in zip(rows, drawn, strict=True) for _ in range(count)])


def test_a_pair_that_is_drawn_twice_pairs_with_itself():
    rows = [
        {"question_id": f"{at // 2}.png", "score": score} for at, score in enumerate([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    ]
    found = metric(rows, pairs, groups=(0, 0, 1, 1, 2, 2))
    assert found.factor is None
    assert found.value == pytest.approx((200 + 50 + 0) / 3)
    assert found.over([3, 0, 0]) == 200
    assert found.over([1, 2, 0]) == pytest.approx((200 + 2 * 50) / 3)


def test_a_function_that_counts_on_from_call_to_call_is_a_mean_of_what_it_said_first():
    total = [0.0]

    def counting(inputs):
        total[0] += sum(one["score"] for one in inputs)
        return total[0] / 10

    found = metric([{"score": score} for score in (1, 0, 1, 1)], counting)
    assert found.value == pytest.approx(0.3)
    assert found.over([1, 1, 1, 1]) == pytest.approx(0.3)
    assert found.over([0, 4, 0, 0]) == 0


def test_inputs_without_a_number_have_no_scores():
    assert metric([{"prediction": "A"}], len).scores is None


def test_all_wrong_is_a_mean_of_zero():
    found = metric([0.0, 0.0], mean)
    assert found.over([2, 0]) == 0


def test_scores_line_up_with_documents():
    found = metric([{"score": 1.0}, {"score": 0.0}], lambda ones: mean([one["score"] for one in ones]))
    assert np.array_equal(found.scores, [1.0, 0.0])
    assert list(found.rows()) == [(0, {"score": 1.0}), (1, {"score": 0.0})]
