"""The settings that tuning tries: the method itself, an earlier first cut, the values of its first two settings."""

import pytest

import foveate as fv
from foveate.errors import SettingError
from foveate.naming import parse, settings_given
from foveate.registry import methods
from foveate.tuning.candidates import grid

DEPTH = 32


def layers_of(text, setting="layers"):
    return [getattr(candidate, setting) for candidate in grid(parse(text), DEPTH, settings_given(text))]


def test_v2drops_grid_by_hand():
    every = grid(fv.V2Drop(), DEPTH)
    assert every[0] == fv.V2Drop()
    assert len(every) == 4 * 2 * 3
    assert {setting.layers for setting in every} == {None, (1, 17, 22), (2, 17, 22)}
    assert {(setting.metric, setting.over) for setting in every} == {
        (metric, over) for metric in ("l2", "l1", "cosine", "relative") for over in ("net", "path")
    }


@pytest.mark.parametrize("name", ["fastv", "pyramiddrop", "visiondrop", "sparsevlm", "dart", "divprune"])
def test_all_settings_differ_and_meet_a_budget_and_the_first_is_the_method(name):
    every = grid(methods()[name](), DEPTH)
    assert every[0] == methods()[name]()
    assert len(set(every)) == len(every)
    assert len({setting.with_budget(retention=0.5) for setting in every}) == len(every)


def test_a_given_setting_stays_also_where_it_is_the_usual_one():
    assert {
        setting.metric for setting in grid(parse("v2drop:metric=l2"), DEPTH, settings_given("v2drop:metric=l2"))
    } == {"l2"}
    assert set(layers_of("v2drop:layers=3,17,22")) == {(3, 17, 22)}
    assert set(layers_of("dart", "layer")) == {1, 2, 3}
    assert set(layers_of("dart:layer=2", "layer")) == {2}
    assert set(layers_of("dart:layer=9", "layer")) == {9}


def test_a_first_cut_stays_before_the_next_one():
    assert {setting.layers for setting in grid(fv.V2Drop(), 6)} == {None, (2, 3, 4)}


def test_of_a_chain_the_member_that_spends_is_tried_and_the_others_stay():
    chain = fv.DivPrune(keep=0.5) + fv.V2Drop() + fv.FinalKV()
    every = grid(chain, DEPTH, ["1.metric"])
    assert {setting.members[0] for setting in every} == {fv.DivPrune(keep=0.5)}
    assert {setting.members[1] for setting in every} == set(grid(fv.V2Drop(), DEPTH, ["metric"]))
    assert every[0] == chain
    with pytest.raises(SettingError, match="budget"):
        grid(fv.FinalKV() + fv.Read(layer=1), DEPTH)
