from types import SimpleNamespace

import numpy as np
import pytest

from foveate.eval.stats import Estimate
from foveate.methods.v2drop import V2Drop
from foveate.tune.report import Report
from foveate.tune.tuned import Tuned


class Told:
    """A race whose answers are told: which are the full model's, by the setting's ratio."""

    def __init__(self, agrees):
        self.agrees = agrees

    def column(self, method, pictures, figure):
        return np.array(self.agrees[method.keep[0]], dtype=float)


class Picture:
    samples = (None, None)

    def __init__(self, key):
        self.key = key


def test_what_searching_brought_is_the_difference_on_the_same_questions():
    pictures = [Picture(str(number)) for number in range(3)]
    race = Told({0.1: [1, 1, 0, 1, 1, 0], 0.2: [1, 0, 0, 1, 0, 0]})
    settings = [V2Drop(layers=(1,), keep=(keep,)) for keep in (0.1, 0.2)]
    gain = Report(race=race, prices=None, pictures=pictures).gain(*settings)
    assert gain.value == pytest.approx(1 / 3)
    assert (gain.low, gain.high) == (pytest.approx(0), pytest.approx(0.5))


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
