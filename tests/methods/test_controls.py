"""Controls at another method's schedule: by hand, and as many tokens in every layer whatever the schedule."""

from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Shape, follow
from foveate.methods.random import same_schedule

KINDS = (fv.Random, fv.Uniform)
PLAIN = fv.Uniform(layers=(0,), keep=(1.0,))
CACHED = fv.Uniform(layers=(2, 4), keep=(0.5, 0.5)) + fv.FinalKV(first_layer=1)


def test_a_schedule_becomes_a_cut_wherever_tokens_leave():
    control = same_schedule(PLAIN, (100, 100, 37, 37, 36, 1, 0), 144)
    assert isinstance(control, fv.Random)
    assert control.layers == (0, 2, 4, 5, 6)
    assert control.plan(7, (144,)) == (100, 100, 37, 37, 36, 1, 0)


def test_random_is_the_usual_control_and_uniform_the_other():
    assert same_schedule(PLAIN, (9, 4), 9) == same_schedule(PLAIN, (9, 4), 9, control=fv.Random())
    assert isinstance(same_schedule(PLAIN, (9, 4), 9, control=fv.Uniform()), fv.Uniform)


def test_shares_that_floats_miss_by_a_hair_leave_the_whole_token():
    assert int(22 * (15 / 22)) == 14
    assert same_schedule(PLAIN, (15,), 22).plan(1, (22,)) == (15,)


def test_a_schedule_that_drops_nothing_makes_no_cut():
    control = same_schedule(CACHED, (144,) * 7, 144)
    assert control.layers == ()
    assert control.plan(7, (144,)) == (144,) * 7


def test_caches_are_cut_where_the_other_method_cuts_them():
    control = same_schedule(CACHED, (144, 144, 60, 60, 30, 30, 30), 144)
    assert control.members[1:] == (fv.FinalKV(first_layer=1),)
    assert list(follow.cached_layers(follow.in_order(control.stages(Shape(depth=7))))) == [1, 2, 3]


def test_caches_that_hold_the_final_tokens_already_are_left_alone():
    tokens = (144, 60, 60, 60, 60)
    assert same_schedule(CACHED, tokens, 144) == same_schedule(PLAIN, tokens, 144)


@given(entered=st.integers(1, 4096), drops=st.lists(st.integers(0, 300), min_size=1, max_size=40), data=st.data())
def test_every_layer_has_as_many_tokens_as_asked_for(entered, drops, data):
    tokens, left = [], entered
    for dropped in drops:
        left = max(0, left - dropped)
        tokens.append(left)
    control = same_schedule(PLAIN, tokens, entered, control=data.draw(st.sampled_from(KINDS))())
    assert control.plan(len(tokens), (entered,)) == tuple(tokens)
