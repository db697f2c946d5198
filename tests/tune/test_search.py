import random
from contextlib import suppress
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.contract.space import Point, space_of
from foveate.errors import SettingError
from foveate.methods.v2drop import V2Drop
from foveate.methods.visiondrop import VisionDrop
from foveate.tune.search import Trial, draw, search, step

DEPTH = 32
SPACE = space_of(V2Drop(), DEPTH)
START = Point((3, 17, 22), (1.0, 0.3, 0.1), SPACE.usual)


def solve(point):
    with suppress(SettingError):  # a window as wide as the first cut is early
        return SPACE.build(point.layers, [max(1, round(100 * share)) for share in point.shape], 576, point.values)


def searched_by(score, *, seed=0, drawn=20, steps=40, over=lambda: False):
    return search(SPACE, [START], Trial(solve, score, over, lambda: None), seed, drawn=drawn, steps=steps)


def test_steps_go_out_from_the_best_six(monkeypatch):
    followed = set()
    monkeypatch.setattr(
        "foveate.tune.search.step", lambda space, point, chance: followed.add(point) or step(space, point, chance)
    )
    order = count()
    searched = searched_by(lambda method: next(order), steps=80)  # every setting is behind those before it
    assert followed == {found.point for found in searched.best[:6]}


@pytest.mark.parametrize("cuts", [(1, 2), (1, 9)])
def test_cuts_right_behind_one_another_are_found_as_others_are(cuts):
    def distance(method):
        return sum(min(abs(layer - cut) for layer in method.layers) for cut in cuts) + 0.1 * len(method.layers)

    assert set(cuts) <= set(searched_by(distance, steps=80).best[0].method.layers)


def test_without_time_the_first_setting_is_tried_all_the_same():
    searched = searched_by(lambda method: 1.0, over=lambda: True)
    assert (searched.tried, searched.complete) == (1, False)


def test_nothing_more_is_solved_once_the_time_is_up():
    solved = []

    def counted(point):
        solved.append(point)
        return solve(point)

    trial = Trial(counted, lambda method: 1.0, lambda: True, lambda: None)
    search(SPACE, [START], trial, 0)
    assert len(solved) == 1


def test_a_seed_tries_the_same_settings():
    first, second = (searched_by(lambda method: method.layers[0], seed=7) for _ in range(2))
    assert first.best == second.best
    assert first.best != searched_by(lambda method: method.layers[0], seed=8).best


SPACES = [SPACE, SPACE.without(("metric",), (1, 9)), space_of(VisionDrop(), DEPTH)]


@given(seed=st.integers(0, 2**32), space=st.sampled_from(SPACES))
def test_points_stay_in_the_space(seed, space):
    chance = random.Random(seed)
    point = draw(space, chance)
    for _ in range(20):
        point = step(space, point, chance)
        assert list(point.layers) == sorted(set(point.layers))
        assert space.first <= point.layers[0]
        assert point.layers[-1] < DEPTH
        assert len(point.layers) <= space.most_cuts
        assert space.fixed in ((), point.layers)
        assert len(point.shape) == len(point.layers) + space.counts_entry
        assert point.shape[0] == 1
        assert all(share > 0 for share in point.shape)
        assert all(after <= before + 1e-9 for before, after in zip(point.shape, point.shape[1:], strict=False))
        assert all(value in space.settings[name] for name, value in point.settings)
