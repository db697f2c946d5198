"""Which setting is taken, and what is said of it."""

from types import SimpleNamespace

import pytest

from foveate.plain.stats import Estimate
from foveate.tuning.choice import best_of
from foveate.tuning.tuned import Tuned


class Answered:
    """Questions about six pictures or fewer, two about the first, and how far answers of settings are from the full
    model's: the picture, whether they are the same, and KL."""

    def __init__(self, **settings):
        self.settings = settings

    def log(self, method):
        return [
            {"picture": picture, "answer": "red", "labels": ("red" if agrees else "blue",), "kl": kl}
            for picture, agrees, kl in self.settings[method]
        ]


def answers(*agrees, kl=0.01):
    return [(place, bool(agrees), kl) for place, agrees in enumerate(agrees)]


def test_agreement_decides_and_of_equals_the_surer():
    answered = Answered(a=answers(1, 1, 1, 0, 0), b=answers(1, 1, 1, 1, 0), c=answers(1, 1, 1, 1, 0, kl=0.001))
    assert best_of(answered, ["a", "b", "c"], None) == ("c", "c")


def test_the_published_setting_stays_unless_another_is_ahead_by_a_standard_error():
    ahead = Answered(published=answers(0, 0, 0, 1, 0), grid=answers(1, 1, 1, 1, 0))
    assert best_of(ahead, ["published", "grid"], "published") == ("grid", "grid")
    level = Answered(published=answers(0, 1, 1, 0, 1), grid=answers(1, 0, 1, 1, 1, kl=0.02))
    assert best_of(level, ["published", "grid"], "published") == ("published", "grid")
    few = Answered(published=answers(0, 0, 0, 0), grid=answers(1, 1, 1, 1))
    assert best_of(few, ["published", "grid"], "published") == ("published", "grid")


def test_each_picture_counts_once():
    many = [(0, False, 0.0)] * 9 + answers(1, 1, 1, 1, 1)[1:]
    answered = Answered(a=many, b=answers(1, 0, 0, 1, 1))
    assert best_of(answered, ["b", "a"], None)[0] == "a"


# -- what is said -----------------------------------------------------------------------------------------------------


def rows(ahead):
    return [SimpleNamespace(name="tuned", ahead=ahead), SimpleNamespace(name="grid", ahead=ahead)]


@pytest.mark.parametrize(
    ("ahead", "says"),
    [
        (Estimate(0.2, 0.1, 0.3), "+20.0 [+10.0, +30.0] points of agreement against the published schedule"),
        (Estimate(0.1, -0.1, 0.3), "not told apart from"),
        (Estimate(-0.2, -0.3, -0.1), "worse than"),
        (None, "no published schedule"),
    ],
)
def test_the_verdict_is_that_of_the_pictures_to_report_with(ahead, says):
    tuned = SimpleNamespace(chosen="grid", rows=[SimpleNamespace(name="tuned", ahead=ahead)])
    assert says in Tuned.verdict.fget(tuned)


@pytest.mark.parametrize("low", [-0.1, 0.0, float("nan")])
def test_a_published_schedule_stays_without_a_word_on_others_that_are_not_surely_ahead(low):
    """One held-out picture has no interval."""
    tuned = SimpleNamespace(chosen="published", rows=rows(Estimate(0.1, low, 0.3)))
    assert Tuned.verdict.fget(tuned).endswith("so it stays.")
