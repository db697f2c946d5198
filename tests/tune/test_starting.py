import pytest

import foveate as fv
from foveate import embedded
from foveate.contract.naming import given, parse
from foveate.contract.space import space_of
from foveate.tune.costs import Limit, Prices, solved
from foveate.tune.samples import grouped
from foveate.tune.starting import left_to_search, published_point, usual_point
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


def test_given_settings_are_left_out_of_the_search_and_given_layers_stay():
    text = "v2drop:metric=l2;layers=1,3;keep=0.5,0.5"
    space = left_to_search(space_of(parse(text), DEPTH), parse(text), given(text))
    assert ("metric" in space.settings, space.fixed) == (False, (1, 3))
    text = "divprune:keep=0.8+v2drop:over=net;layers=1,3;keep=0.5,0.5"
    space = left_to_search(space_of(parse(text), DEPTH), parse(text), given(text))
    assert ("1.over" in space.settings, "1.metric" in space.settings, space.fixed) == (False, True, (1, 3))
