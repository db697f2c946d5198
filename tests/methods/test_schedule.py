"""Schedules and budgets, solved: counts by hand, means by loops."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import BudgetError, SettingError
from foveate.methods.schedule import (
    Budget,
    as_layers,
    budget_of,
    decoder_depth,
    entry_floor,
    entry_sizes,
    geometric_counts,
    staged_ratios,
)


def spent(cuts, ratios, depth, start, floor):
    """The mean over layers of a schedule, in fractions of tokens; the last cut leaves `floor` where it keeps none."""
    left, total = start, 0.0
    for layer in range(depth):
        if layer in cuts:
            left = max(left * ratios[cuts.index(layer)], floor)
        total += left
    return total / depth


def test_a_budget_is_a_number_or_a_share():
    assert Budget(tokens=192).mean(576) == 192
    assert Budget(tokens=192).mean(100) == 100  # never more than there are
    assert Budget(retention=0.25).mean(100) == 25


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "Give one of tokens= and retention="),
        ({"tokens": 1, "retention": 0.5}, "Give one of"),
        ({"retention": 0}, "above 0 and at most 1"),
        ({"retention": 1.1}, "above 0 and at most 1"),
        ({"retention": math.nan}, "above 0 and at most 1"),
        ({"tokens": 0}, "tokens must be a finite number above 0"),
        ({"tokens": math.inf}, "tokens must be a finite number above 0"),
    ],
)
def test_what_is_no_budget_is_refused(given_, message):
    with pytest.raises(SettingError, match=message):
        Budget(**given_)


class Config:
    num_hidden_layers, model_type, image_seq_length = 32, "llava", 576


def test_a_budget_for_a_model():
    assert budget_of(Config(), 192, None, None) == (192 / 576, 576)
    assert budget_of(Config(), None, 0.5, None) == (0.5, None)
    assert budget_of(Config(), 192, None, 1024) == (192 / 1024, 1024)
    assert decoder_depth(Config()) == 32
    with pytest.raises(SettingError, match="vision_tokens is the number of the image's tokens, 1 or more; got 0"):
        budget_of(Config(), 192, None, 0)


def test_layers_ascend():
    assert as_layers([3, 17]) == (3, 17)
    for layers, message in (((3, 3), "ascend strictly"), ((3.7, 9), "whole numbers"), ((True, 3), "whole numbers")):
        with pytest.raises(SettingError, match=message):
            as_layers(layers)


@given(
    depth=st.integers(6, 60),
    share=st.floats(0.05, 1.0),
    start=st.integers(16, 3000),
    floor=st.integers(0, 1),
    data=st.data(),
)
def test_three_cuts_meet_a_mean_between_their_floor_and_the_whole(depth, share, start, floor, data):
    cuts = tuple(sorted(data.draw(st.lists(st.integers(0, depth - 1), min_size=3, max_size=3, unique=True))))
    mean = share * start
    lowest = (cuts[0] * start + floor * (depth - cuts[0])) / depth
    movable = data.draw(st.booleans())
    if mean <= lowest + 1e-6:
        return
    where, ratios = staged_ratios(cuts, depth, mean, start, start, floor, "Any", movable)
    assert where[:2] == cuts[:2]
    assert where[2] >= cuts[2]
    assert all(0 <= ratio <= 1 for ratio in ratios)
    if movable or mean <= (cuts[2] * start + floor * (depth - cuts[2])) / depth:
        # A middle cut that leaves less than the floor leaves the floor, as counts do.
        assert spent(where, ratios, depth, start, floor) == pytest.approx(mean, abs=max(1.0, 1e-6 * start))


def test_the_floor_of_one_cut_and_of_three():
    for cuts in ((8,), (8, 16, 24)):
        with pytest.raises(BudgetError, match="Mine cannot average 100 of 576 vision tokens on 32 layers") as refused:
            staged_ratios(cuts, 32, 100, 576, 576, 1, "Mine")
        assert refused.value.floor == pytest.approx((8 + 24 / 576) / 32)
    with pytest.raises(BudgetError, match="a reduction before the decoder"):
        staged_ratios((1,), 32, 1, 576, 576, 1, "Mine")
    with pytest.raises(SettingError, match="three cuts, or one"):
        staged_ratios((1, 2), 32, 100, 576, 576, 1, "Mine")


@given(
    full=st.integers(10, 3000),
    share=st.floats(0.05, 1),
    entry=st.sampled_from([1.0, 1.5, 3.0]),
    cuts=st.sampled_from([(8, 16, 24), (2, 5, 30), (1,), ()]),
)
def test_an_entry_factor_meets_the_mean_and_falls_geometrically(full, share, entry, cuts):
    mean = share * full
    sizes = entry_sizes(mean, full, 32, cuts, entry)
    bounds = [0, *cuts, 32]
    average = sum(size * (bounds[i + 1] - bounds[i]) for i, size in enumerate(sizes)) / 32
    assert max(sizes) <= full + 1e-6
    if cuts or entry == 1:
        assert average == pytest.approx(mean, rel=1e-6)
    floor = entry_floor(full, 32, cuts, entry)
    assert entry_sizes(floor, full, 32, cuts, entry)[-1] == pytest.approx(1, abs=1e-3)


def test_geometric_counts_by_hand():
    assert geometric_counts(192, 440, 32, (3, 7, 11, 15), 36) == (316, 227, 163, 117)
    assert geometric_counts(128, 440, 32, (3, 7, 11, 15), 36) == (254, 147, 85, 49)
    assert geometric_counts(192, 120, 32, (3, 7, 11, 15), 10) == (120,) * 4  # less is there than may be spent
    assert geometric_counts(40, 100, 32, (3, 7), 36) == (36, 36)  # never below the key tokens
