from dataclasses import replace

import pytest

from foveate.eval.stats import Estimate
from foveate.eval.verdict import collapsed, verdict, verdicts
from tests.eval.test_summary import summary

__all__ = ["summary"]


@pytest.mark.parametrize(
    ("low", "high", "words", "lower_is_better"),
    [
        (0.01, 0.2, "better than", "worse than"),
        (-0.2, -0.01, "worse than", "better than"),
        (-0.1, 0.1, "not told apart from", "not told apart from"),
        (0.0, 0.1, "not told apart from", "not told apart from"),
        (0.0, 0.0, "not told apart from", "not told apart from"),
    ],
)
def test_an_interval_that_holds_zero_tells_nothing_apart(low, high, words, lower_is_better):
    difference = Estimate((low + high) / 2, low, high)
    assert verdict(difference) == words
    assert verdict(difference, higher_is_better=False) == lower_is_better


def test_a_method_gets_one_sentence_over_all_budgets(summary):
    ours = summary.outcomes[0]
    better, worse, alike = Estimate(0.2, 0.1, 0.3), Estimate(-0.2, -0.3, -0.1), Estimate(0.0, -0.1, 0.1)
    outcomes = [
        replace(ours, tokens=192.2, against={"random": better, "resize": alike}),
        replace(ours, tokens=128.0, against={"random": better, "resize": better}),
        replace(ours, tokens=64.0, against={"random": alike, "resize": worse}),
        replace(ours, tokens=32.0, against={"random": worse, "resize": worse}),
    ]
    assert verdicts(outcomes) == [
        "ours: better than random at 192 and 128 tokens; not told apart from random at 64 tokens; "
        "worse than resize at 64 and 32 tokens; worse than random at 32 tokens."
    ]


def test_controls_and_methods_without_one_get_none(summary):
    assert verdicts(summary.outcomes) == ["ours: better than random at 64 tokens."]
    assert verdicts([replace(outcome, against={}) for outcome in summary.outcomes]) == []


def test_a_task_of_which_less_than_a_quarter_is_left_has_collapsed():
    assert collapsed({"text": 0.2, "count": 0.25, "colour": 0.24}, {"text": 0.6, "count": 1.0, "colour": 1.0}) == [
        "colour"
    ]
    assert collapsed({"list": 0.0}, {"list": 0.0}) == []


def test_what_an_accuracy_hides_is_said_of_methods_and_not_of_controls(summary):
    lost = {"colour": Estimate(1.0, 0.9, 1.0), "count": Estimate(0.04, 0.0, 0.1)}
    outcomes = tuple(replace(outcome, tasks=lost) for outcome in summary.outcomes[:2])
    said = [note for note in replace(summary, outcomes=outcomes).findings() if "quarter" in note]
    assert said == ["ours at 64 tokens: less than a quarter is left of count (4%; full model 100%)."]
