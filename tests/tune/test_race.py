from collections import defaultdict

import pytest
import torch

import foveate as fv
from foveate.tune import race
from foveate.tune.forcing import Outcome, answered
from foveate.tune.race import FEWEST, Journal, Race
from foveate.tune.samples import grouped
from foveate.tune.schedules import _Answers
from tests.models import batch, tiny
from tests.tune.pictures import pictures_of

LLAVA = tiny("llava")
PICTURES = grouped(LLAVA, [batch("llava", ["tit"], seed) for seed in range(8)])


def method(keep):
    return fv.V2Drop(layers=(1,), keep=(keep,))


@pytest.fixture
def told(monkeypatch):
    """A race whose roots are told: by a setting's ratio, one for each picture; it notes what was run."""
    roots, ran = {}, []

    def outcomes(model, pictures, wanted, method):
        ran.extend([method.keep[0]] * len(pictures))
        return [[Outcome(roots[method.keep[0]][PICTURES.index(about)] ** 2, False)] for about in pictures]

    monkeypatch.setattr(race, "outcomes", outcomes)
    return Race(LLAVA, defaultdict(list), Journal()), roots, ran


def test_a_setting_that_was_unlucky_with_the_first_pictures_goes_on(told):
    racing, roots, ran = told
    roots |= {0.1: [0, 0, 0.01, 0.9, 0.8, 0.9, 0.7, 0.9], 0.2: [0.3, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3, 0.2]}
    assert racing.score(method(0.1), PICTURES) == pytest.approx(0.52625)
    assert racing.score(method(0.2), PICTURES) == pytest.approx(0.25)
    assert ran.count(0.2) == len(PICTURES)


def test_a_setting_that_is_behind_on_every_picture_stops(told):
    racing, roots, ran = told
    roots |= {0.1: [0.1, 0.5, 0.2, 0.3, 0.1, 0.4, 0.2, 0.3], 0.2: [0.7, 0.9, 0.8, 0.7, 0.8, 0.9, 0.7, 0.8]}
    racing.score(method(0.1), PICTURES)
    assert racing.score(method(0.2), PICTURES) is None
    assert ran.count(0.2) == FEWEST


def test_pictures_run_in_one_batch_and_those_that_are_known_do_not(told):
    racing, roots, ran = told
    roots |= {0.1: [0.1 * place for place in range(8)]}
    first = racing.column(method(0.1), PICTURES[:3], lambda outcome: outcome.root)
    every = racing.column(method(0.1), PICTURES, lambda outcome: outcome.root)
    assert every.tolist() == pytest.approx(roots[0.1])
    assert first.tolist() == every[:3].tolist()
    assert len(ran) == racing.runs == 8


def test_answers_that_are_made_on_the_way_are_those_of_the_full_model():
    pictures, setting = pictures_of("llava", 6), method(1.0)
    answers = _Answers(LLAVA, pictures, 3, lambda _: None)
    drift = Race(LLAVA, answers, Journal()).column(setting, pictures, lambda outcome: outcome.divergence)
    assert drift.max() < 1e-5
    for about in pictures:
        alone = answered(LLAVA, about, 3)
        assert [target.ids for target in answers[about.key]] == [target.ids for target in alone]
        for target, own in zip(answers[about.key], alone, strict=True):
            torch.testing.assert_close(target.logs, own.logs)
