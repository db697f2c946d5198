import numpy as np

from foveate.contract.space import Point
from foveate.methods.v2drop import V2Drop
from foveate.tune.choosing import chosen
from foveate.tune.samples import Split
from foveate.tune.search import Found, Searched


class Told:
    """A race whose outcomes are told: roots by the setting's ratio."""

    def __init__(self, roots):
        self.roots = roots

    def column(self, method, pictures, figure):
        return np.array(self.roots[method.keep[0]])


class Picture:
    samples = (None,)

    def __init__(self, key):
        self.key = key


PICTURES = [Picture(str(number)) for number in range(6)]


def found(keep):
    return Found(0.0, Point((1,), (1.0,)), V2Drop(layers=(1,), keep=(keep,)))


def choice(published, grid, drawn, with_published=True, pictures=6):
    race = Told({0.1: published, 0.2: grid, 0.3: drawn})
    searched = Searched(grid=[found(0.2)], drawn=[found(0.3)])
    parts = Split((), tuple(PICTURES[:pictures]), ())
    return chosen(race, searched, found(0.1).method if with_published else None, parts)


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
