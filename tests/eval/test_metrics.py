"""Figures of benchmarks as functions of rows; those of papers by lmms-eval's own functions on made-up answers."""

import numpy as np
import pytest
from lmms_eval.api.metrics import mean

from foveate.errors import InputError, UnsupportedError
from foveate.eval.lmms.metrics import MME_TOTAL, Metric, metric_of, score_logs
from foveate.plain.stats import Resampled


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


def log_of(inputs, pictures=None, name="m"):
    """Rows with these inputs; a picture of its own for each where nothing else is said."""
    pictures = pictures or range(len(inputs))
    rows = enumerate(zip(inputs, pictures, strict=True))
    return [{"document": at, "picture": picture, "inputs": {name: answer}} for at, (answer, picture) in rows]


def metric(function, log, name="m"):
    return Metric(name, float(function([row["inputs"][name] for row in log])), True, "1", {name: function})


def alone(found, log):
    """The scored rows of the full model alone, and what gives the figure."""
    ((rows,), aggregate) = score_logs([found], [log])
    return rows, aggregate


def scores(log):
    return [row["score"] for row in log]


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        (mean, [1, 0, 1, 1, 0], [1.0, 0.0, 1.0, 1.0, 0.0]),
        (mean, [0.0, 0.0], [0.0, 0.0]),
        (lambda ones: sum(ones) / len(ones), [1, 0, 1, 1, 0], None),
        (len, [{"prediction": "A"}], None),
    ],
)
def test_lmms_evals_own_mean_is_known_and_another_figure_is_left_to_its_function(function, inputs, expected):
    log = log_of(inputs)
    score = metric(function, log)
    rows, aggregate = alone(score, log)
    assert scores(rows) == (expected or [None] * len(inputs))
    assert aggregate is (score if expected is None else None)


def test_what_is_no_mean_is_counted_anew():
    both = [("yes", "yes"), ("yes", "no"), ("no", "no"), ("no", "yes"), ("yes", "yes"), ("no", "no"), ("yes", "no")]
    inputs = [{"prediction": said, "truth": true, "score": float(said == true)} for said, true in both]
    log = log_of(inputs)
    score = metric(f1, log)
    rows, aggregate = alone(score, log)
    assert scores(rows) == [None] * 7
    drawn = [0, 0, 2, 3, 4, 4, 4, 6]
    assert aggregate([rows[at] for at in drawn]) == f1([inputs[at] for at in drawn])
    assert Resampled(range(7)).over(rows, aggregate)[0] == score.value


def test_a_pair_that_is_drawn_twice_pairs_with_itself():
    inputs = [
        {"question_id": f"{at // 2}.png", "score": score} for at, score in enumerate([1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    ]
    log = log_of(inputs, (0, 0, 1, 1, 2, 2))
    result = metric(pairs, log)
    rows, aggregate = alone(result, log)
    assert result.value == pytest.approx((200 + 50 + 0) / 3)
    assert aggregate([rows[at] for at in (0, 0, 0, 1, 1, 1)]) == 200
    assert aggregate([rows[at] for at in (0, 1, 2, 2, 3, 3)]) == pytest.approx((200 + 2 * 50) / 3)


def counting_on():
    """A function that counts on from call to call, as OCRBench's does."""
    total = [0.0]

    def counting(inputs):
        total[0] += sum(one["score"] for one in inputs)
        return total[0] / 10

    return counting


def test_ocrbench_is_a_mean_of_what_its_function_said_first():
    log = log_of([{"score": score} for score in (1, 0, 1, 1)], name="ocrbench_accuracy")
    rows, aggregate = alone(metric(counting_on(), log, "ocrbench_accuracy"), log)
    assert aggregate(rows) == aggregate(rows) == pytest.approx(0.3)
    assert aggregate(rows[1:2]) == 0


def test_a_function_that_says_another_figure_each_time_is_refused():
    log = log_of([{"score": score} for score in (1, 0, 1, 1)])
    with pytest.raises(InputError, match=r"was 0\.3, and is 0\.6"):
        alone(metric(counting_on(), log), log)


# -- what papers print ----------------------------------------------------------------------------------------


def report_of(name, **figures):
    """What lmms-eval reports of a task."""
    values = {f"{metric},none": value for metric, value in figures.items()}
    better = dict.fromkeys(figures, True)
    return {"results": {name: values}, "versions": {name: 1}, "higher_is_better": {name: better}}


def test_mme_is_perception_and_cognition_together():
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

    rng = np.random.default_rng(0)
    log = []
    for at in range(40):
        category = ("existence", "color", "code_reasoning")[at // 2 % 3]
        doc = {"question_id": f"{at // 2}.png", "category": category, "answer": "Yes" if at % 2 else "No"}
        answer = "yes" if rng.random() < 0.5 else "no"
        log.append({"document": at, "picture": at // 2, "inputs": mme_process_results(doc, [answer])})
    names = ("mme_perception_score", "mme_cognition_score")
    values = {
        name: mme_aggregate_results([row["inputs"][name] for row in log if name in row["inputs"]]) for name in names
    }
    score = metric_of("mme", dict.fromkeys(names, mme_aggregate_results), report_of("mme", **values))
    assert (score.name, score.value, score.version) == (MME_TOTAL, sum(values.values()), "1")
    rows, aggregate = alone(score, log)
    assert aggregate(rows) == pytest.approx(score.value)
    twice = [*rows[:2], *rows[4:6], *rows[:2]]
    parts = [[row["inputs"][name] for row in rows[at : at + 2]] for name, at in zip(names, (0, 4), strict=True)]
    assert aggregate(twice) == pytest.approx(sum(map(mme_aggregate_results, parts)))


def test_a_task_without_a_figure_is_refused():
    with pytest.raises(UnsupportedError, match="gives no figure"):
        metric_of("t", {"submission": mean}, report_of("t", submission=None))


def test_the_figure_that_papers_print_is_taken():
    functions = dict.fromkeys(("pope_accuracy", "pope_f1_score"), mean)
    assert metric_of("t", functions, report_of("t", pope_accuracy=0.5, pope_f1_score=0.4)).name == "pope_f1_score"
