import pytest

import foveate as fv
from foveate.tune.forcing import Outcome
from foveate.tune.race import FEWEST, Journal, Race
from foveate.tune.samples import grouped
from tests.models import batch, tiny

LLAVA = tiny("llava")
PICTURES = grouped(LLAVA, [batch("llava", ["tit"], seed) for seed in range(8)])


def method(keep):
    return fv.V2Drop(layers=(1,), keep=(keep,))


@pytest.fixture
def told(monkeypatch):
    """A race whose roots are told: by a setting's ratio, one for each picture; it notes what was run."""
    roots, ran = {}, []

    def outcomes(race, method, about):
        ran.append(method.keep[0])
        return [Outcome(roots[method.keep[0]][PICTURES.index(about)] ** 2, False)]

    monkeypatch.setattr(Race, "outcomes", outcomes)
    return Race(LLAVA, {}, Journal()), roots, ran


def test_a_setting_that_was_unlucky_with_the_first_pictures_goes_on(told):
    race, roots, ran = told
    roots |= {0.1: [0, 0, 0.01, 0.9, 0.8, 0.9, 0.7, 0.9], 0.2: [0.3, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3, 0.2]}
    assert race.score(method(0.1), PICTURES) == pytest.approx(0.52625)
    assert race.score(method(0.2), PICTURES) == pytest.approx(0.25)
    assert ran.count(0.2) == len(PICTURES)


def test_a_setting_that_is_behind_on_every_picture_stops(told):
    race, roots, ran = told
    roots |= {0.1: [0.1, 0.5, 0.2, 0.3, 0.1, 0.4, 0.2, 0.3], 0.2: [0.7, 0.9, 0.8, 0.7, 0.8, 0.9, 0.7, 0.8]}
    race.score(method(0.1), PICTURES)
    assert race.score(method(0.2), PICTURES) is None
    assert ran.count(0.2) == FEWEST
