from dataclasses import replace

import pytest

from foveate.eval.stats import Estimate
from foveate.eval.verdict import verdict, verdicts
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
