import sys
from contextlib import suppress

import pytest
from hypothesis import given as given_by, strategies as st

import foveate as fv
from foveate import embedded
from foveate.contract.space import Point, space_of
from foveate.naming import given, parse
from foveate.tuning.parts import grouped
from foveate.tuning.prices import Limit, Prices, solved
from foveate.tuning.searching import (
    Suggestions,
    Tried,
    grid,
    left_to_search,
    published_point,
    searched,
    settings_of,
    usual_point,
)
from tests.models import DEPTH, batch, tiny

LLAVA = tiny("llava")
EVERY = [sample for about in grouped(LLAVA, [batch("llava", ["tit"], 0)]) for sample in about.samples]
PRICES = Prices(LLAVA, EVERY, "retention")
LIMIT = Limit("retention", 0.5)
LATE = fv.V2Drop(layers=(2, 3), keep=(0.5, 0.5))


def begun(method):
    space = space_of(method, DEPTH)
    return space, published_point(method, space, PRICES, LIMIT)


@pytest.mark.parametrize("earlier", [fv.DivPrune(keep=0.8), fv.DivPrune(retention=0.8), fv.FastV(layers=(1,))])
def test_a_chain_begins_with_the_cuts_of_the_member_that_spends(earlier):
    space, point = begun(earlier + LATE)
    assert point.layers == (2, 3)
    assert 0.4 < PRICES.of(solved(space, point, PRICES, 0.5)) <= 0.5


def test_the_share_of_an_earlier_member_is_searched_unless_somebody_gave_one():
    shares = space_of(fv.DivPrune() + LATE, DEPTH).settings["0.retention"]
    assert shares[0] is None
    assert len(shares) > 3
    for early in (fv.DivPrune(keep=0.25), fv.DivPrune(retention=0.25), fv.DivPrune(tokens=9)):
        assert "0.retention" not in space_of(early + LATE, DEPTH).settings


@pytest.fixture(scope="module")
def prices():
    vlm = fv.load()
    (about,) = grouped(vlm, [(embedded.picture(), "What is it?")])
    return Prices(vlm.model, about.samples, "tokens")


@pytest.mark.parametrize(
    ("text", "published"),  # by itself DivPrune leaves 56 tokens, so that nothing is left to cut; so do the others
    [
        ("divprune+v2drop", False),
        ("visionzip+v2drop", False),
        ("visiondrop+fastv", False),
        ("divprune:keep=0.25+pyramiddrop", True),
    ],
)
def test_chains_by_name_have_something_to_begin_with(text, published, prices):
    method = parse(text)
    space = space_of(method, prices.depth)
    start = published_point(method, space, prices, Limit("tokens", 64))
    assert (start is not None) == published
    found = solved(space, start or usual_point(method, space, prices), prices, 64)
    assert prices.of(found) <= 64


def test_a_tower_is_thinned_more_and_more_tokens_stay_at_as_many_flops():
    chain = fv.ThinTower() + fv.DivPrune()
    prices, limit = Prices(LLAVA, EVERY, "flops"), Limit("flops", 0.6)
    space = space_of(chain, DEPTH)
    assert dict(space.settings) == {"0.keep": (1 / 3, 1 / 2), "0.at": (1 / 8, 1 / 4, 0.0)}
    start = published_point(chain, space, prices, limit) or usual_point(chain, space, prices)
    found = settings_of(grid(space, start), lambda point: solved(space, point, prices, limit.value))
    thin = {(method.members[0].keep, method.members[0].at): method for method in found}
    assert set(thin) == {(keep, at) for keep in (1 / 3, 1 / 2) for at in (1 / 8, 1 / 4, 0.0)}
    assert all(prices.of(method) <= limit.value for method in found)
    assert prices.tokens(thin[1 / 3, 0.0]) > prices.tokens(thin[1 / 2, 1 / 4])
    assert "0.keep" not in space_of(fv.ThinTower(keep=0.4) + fv.DivPrune(), DEPTH).settings


def test_given_settings_are_left_out_of_the_search_and_given_layers_stay():
    text = "v2drop:metric=l2;layers=1,3;keep=0.5,0.5"
    space = left_to_search(space_of(parse(text), DEPTH), parse(text), given(text))
    assert ("metric" in space.settings, space.fixed) == (False, (1, 3))
    text = "divprune:keep=0.8+v2drop:over=net;layers=1,3;keep=0.5,0.5"
    space = left_to_search(space_of(parse(text), DEPTH), parse(text), given(text))
    assert ("1.over" in space.settings, "1.metric" in space.settings, space.fixed) == (False, True, (1, 3))


# -- searching --------------------------------------------------------------------------------------------------------

DEEP = 32
SPACE = space_of(fv.V2Drop(), DEEP)
START = Point((3, 17, 22), (1.0, 0.3, 0.1), SPACE.usual)


def solve(point):
    with suppress(fv.SettingError):  # a window as wide as the first cut is early
        return SPACE.build(point.layers, [max(1, round(100 * share)) for share in point.shape], 576, point.values)


GRID = settings_of(grid(SPACE, START), solve)


def tried_by(score, number, seed=0):
    return list(searched(SPACE, GRID, solve, lambda method: (score(method), True), number, seed))


def test_the_grid_has_the_early_first_cuts_and_every_value_of_two_settings():
    tried = tried_by(lambda method: 1.0, 0)
    assert {one.origin for one in tried} == {"grid"}
    assert {one.method.layers[0] for one in tried} == {1, 2, 3}
    assert {(one.method.metric, one.method.over) for one in tried} == {
        (metric, over) for metric in ("l2", "l1", "cosine", "relative") for over in ("net", "path")
    }


@pytest.mark.parametrize("second", [2, 9])
def test_a_search_finds_what_the_grid_has_not(second):
    def distance(method):
        return abs(method.layers[0] - 1) + abs(method.layers[-1] - second) / 8 + abs(len(method.layers) - 2)

    tried = tried_by(distance, 60)
    of_the_grid = min(one.score for one in tried if one.origin == "grid")
    assert min(one.score for one in tried) < of_the_grid / 2


def test_no_setting_is_tried_twice_and_a_seed_tries_the_same():
    first, second = (tried_by(lambda method: method.layers[0], 15, seed=7) for _ in range(2))
    assert first == second
    assert len({one.method for one in first}) == len(first)
    assert first != tried_by(lambda method: method.layers[0], 15, seed=8)


def test_where_the_space_is_used_up_the_search_ends():
    space = space_of(fv.DART(), 4)

    def dart(point):
        return fv.DART(**point.values)

    settings = settings_of(grid(space, Point((), (1.0,), space.usual)), dart)
    found = searched(space, settings, dart, lambda method: (0.0, True), 20, 0)
    assert len(list(found)) < 20


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(fv.UnsupportedError, match="needs optuna: pip install"):
        tried_by(lambda method: 1.0, 1)
    assert tried_by(lambda method: 1.0, 0)


SPACES = [SPACE, SPACE.without(("metric",), (1, 9)), space_of(fv.VisionDrop(), DEEP), space_of(fv.DART(), DEEP)]


@given_by(seed=st.integers(0, 2**31), space=st.sampled_from(SPACES))
def test_points_stay_in_the_space(seed, space):
    suggestions = Suggestions(space, seed)
    for _ in range(5):
        trial, point = suggestions.ask()
        suggestions.tell(trial, Tried(0.0, True, point, fv.V2Drop(), "search"))
        cuts = len(point.layers) + space.counts_entry
        assert list(point.layers) == sorted(set(point.layers))
        assert all(space.first <= layer < DEEP for layer in point.layers)
        assert len(point.layers) <= space.most_cuts
        assert space.fixed in ((), point.layers)
        assert len(point.shape) == cuts
        assert point.shape[0] == 1
        assert all(share > 0 for share in point.shape)
        assert all(after <= before + 1e-9 for before, after in zip(point.shape, point.shape[1:], strict=False))
        assert all(value in space.settings[name] for name, value in point.settings)


@pytest.mark.parametrize("space", SPACES)
def test_a_point_that_was_tried_is_told_as_it_is(space):
    suggestions = Suggestions(space, 0)
    _, point = suggestions.ask()
    suggestions._study.enqueue_trial(suggestions._parameters(point))
    assert suggestions.ask()[1] == point
