from types import SimpleNamespace

import numpy as np
import pytest

from foveate.contract.space import Point
from foveate.methods.v2drop import V2Drop
from foveate.plain.stats import Estimate
from foveate.tuning.choice import Choice, chosen, remarks, untuned
from foveate.tuning.parts import Split
from foveate.tuning.searching import Tried
from foveate.tuning.tuned import Tuned


class Told:
    """Trials whose figures are told, by the setting's ratio."""

    def __init__(self, figures):
        self.figures = figures

    def column(self, method, pictures, figure):
        return np.array(self.figures[method.keep[0]], dtype=float)


class Picture:
    def __init__(self, key, questions=1):
        self.key = key
        self.samples = (None,) * questions


PICTURES = [Picture(str(number)) for number in range(6)]


def tried(keep, origin):
    return Tried(0.0, True, Point((1,), (1.0,)), V2Drop(layers=(1,), keep=(keep,)), origin)


def choice(published, grid, drawn, with_published=True, pictures=6):
    trials = Told({0.1: published, 0.2: grid, 0.3: drawn})
    parts = Split((), tuple(PICTURES[:pictures]), ())
    every = [tried(0.2, "grid"), tried(0.3, "search")]
    return chosen(trials, every, V2Drop(layers=(1,), keep=(0.1,)) if with_published else None, parts)


def test_the_published_setting_stays_unless_another_is_ahead_by_a_standard_error():
    assert choice([1, 2] * 3, [2, 0.9] * 3, [1.1, 1.8] * 3).origin == "published"
    assert choice([1, 2] * 3, [1.1, 1.8] * 3, [2, 2] * 3).origin == "published"
    assert choice([1, 2] * 3, [0.9, 1.8] * 3, [2, 2] * 3).origin == "grid"


def test_the_published_setting_stays_where_few_pictures_say_otherwise():
    assert choice([1] * 4, [0.5] * 4, [0.5] * 4, pictures=4).origin == "published"
    assert choice([1] * 5, [0.5] * 5, [0.5] * 5, pictures=5).origin == "grid"


def test_the_grid_stays_unless_the_search_is_ahead_by_a_standard_error():
    assert choice([2] * 6, [1, 0.8] * 3, [0.7, 0.9] * 3).origin == "search"
    assert choice([2] * 6, [1, 0.8] * 3, [0.7, 1.0] * 3).origin == "grid"
    assert choice([2] * 6, [1, 0.6] * 3, [0.7, 1.0] * 3).origin == "grid"
    assert choice([2] * 6, [1] * 6, [1] * 6).origin == "grid"  # the simpler of two that are alike


def test_without_a_published_setting_the_best_is_taken():
    made = choice([0] * 6, [1] * 6, [0.5] * 6, with_published=False)
    assert (made.origin, made.method.keep, made.grid.keep) == ("search", (0.3,), (0.2,))


def test_what_searching_brought_is_the_difference_on_the_same_questions():
    pictures = [Picture(str(number), 2) for number in range(3)]
    trials = Told({0.1: [1, 1, 0, 1, 1, 0], 0.2: [1, 0, 0, 1, 0, 0]})
    tuned, grid = (V2Drop(layers=(1,), keep=(keep,)) for keep in (0.1, 0.2))
    (said,) = remarks(trials, pictures, Choice(tuned, "search", grid, None))
    assert "Searching brought +33.3 [+0.0, +50.0] points" in said
    (said,) = remarks(trials, pictures, Choice(tuned, "grid", tuned, grid))
    assert said.startswith("On 2 of 3 pictures its answers are further off")


@pytest.mark.parametrize(
    ("origin", "name", "ahead", "says"),
    [
        ("grid", "tuned", Estimate(0.2, 0.1, 0.3), None),
        ("grid", "tuned", None, None),
        (
            "grid",
            "tuned",
            Estimate(0.1, -0.1, 0.3),
            "a is as good here, as far as 9 pictures tell: the tuned setting is",
        ),
        ("grid", "tuned", Estimate(-0.2, -0.3, -0.1), "a is better: the tuned setting is -20.0"),
        ("published", "grid", Estimate(0.0, 0.0, 0.0), "a is as good here, as far as 9 pictures tell: the best of the"),
        ("published", "grid", Estimate(0.2, 0.1, 0.3), None),
    ],
)
def test_a_published_schedule_that_is_as_good_is_named(origin, name, ahead, says):
    notes = untuned("a", [SimpleNamespace(name=name, ahead=ahead)], origin, 9)
    assert [note[: len(says or "")] for note in notes] == ([says] if says else [])


@pytest.mark.parametrize(
    ("ahead", "says"),
    [
        (
            Estimate(0.2, 0.1, 0.3),
            "best setting: +20.0 [+10.0, +30.0] points of agreement against the published",
        ),
        (Estimate(0.1, -0.1, 0.3), "On others it is not told apart from the published schedule: +10.0 [-10.0, +30.0]"),
        (Estimate(-0.2, -0.3, -0.1), "On others it is worse than the published schedule: -20.0 [-30.0, -10.0]"),
        (None, "has the best setting. There is no published schedule at this budget."),
    ],
)
def test_the_verdict_is_that_of_the_pictures_to_report_with(ahead, says):
    tuned = SimpleNamespace(chosen="search", rows=[SimpleNamespace(name="tuned", ahead=ahead)])
    assert says in Tuned.verdict.fget(tuned)
