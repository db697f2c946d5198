import numpy as np
import pytest

from foveate.methods.v2drop import V2Drop
from foveate.tune.report import Report


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
