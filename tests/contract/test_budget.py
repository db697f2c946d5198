"""Schedules and budgets, solved: counts by hand, means by loops."""

import pytest
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract.budget import Budget, at_cuts, geometric, half_up, keep_count, proportional, solve
from foveate.errors import BudgetError, SettingError
from tests.contract.test_cuts import Config


def spent(curve, at, cuts, depth, started):
    """Tokens that all layers process at a point of a curve, in fractions."""
    left = {0: started, **dict(zip(cuts, curve(at), strict=True))}
    now = total = 0
    for layer in range(depth):
        now = left.get(layer, now)
        total += now
    return total


def test_a_budget_is_a_number_or_a_share():
    assert Budget(tokens=192).mean(576) == 192
    assert Budget(tokens=192).mean(100) == 100  # never more than there are
    assert Budget(retention=0.25).mean(100) == 25


def test_a_number_of_tokens_is_looked_at_where_the_images_count_is_said():
    assert fv.V2Drop.for_budget(Config(32), tokens=30) == fv.V2Drop(tokens=30)
    with pytest.raises(BudgetError, match="30 of 576"):
        fv.V2Drop.for_budget(Config(32), tokens=30, vision_tokens=576)
    with pytest.raises(SettingError, match="got 577"):
        fv.V2Drop.for_budget(Config(32), tokens=577, vision_tokens=576)


# -- the solver -----------------------------------------------------------------------------------------------

CURVES = {
    "geometric": lambda started, cuts: geometric(started, cuts),
    "in a ratio": lambda started, cuts: proportional(started, at_cuts((330, 210, 62), cuts)),
    "half, then a third": lambda started, cuts: (
        lambda at: [max(1, started * at * (2 / 3) ** cut) for cut in range(cuts)]
    ),
}


@st.composite
def problems(draw):
    """A curve, its cuts (one to six of them), the decoder's depth, and what enters it."""
    depth, started = draw(st.integers(6, 60)), draw(st.integers(2, 3000))
    cuts = sorted(draw(st.sets(st.integers(0, depth - 1), min_size=1, max_size=6)))
    return draw(st.sampled_from(list(CURVES.values())))(started, len(cuts)), cuts, depth, started


@given(problem=problems(), share=st.floats(0, 1))
def test_a_budget_is_met_from_below_and_within_a_step(problem, share):
    curve, cuts, depth, started = problem
    least = cuts[0] * started + depth - cuts[0]
    most = spent(curve, 1, cuts, depth, started)
    total = least + share * (most - least)
    at = solve(curve, cuts, depth, total / depth, started, started, "Any")
    slack = 1e-9 * depth * started
    assert spent(curve, at, cuts, depth, started) <= total + slack
    assert at == 1 or spent(curve, at + 1e-9, cuts, depth, started) >= total - slack


@given(problem=problems(), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_larger_budget_leaves_no_fewer_tokens(problem, shares):
    curve, cuts, depth, started = problem
    floor = (cuts[0] * started + depth - cuts[0]) / depth
    means = [floor + share * (started - floor) for share in sorted(shares)]
    small, large = (curve(solve(curve, cuts, depth, mean, started, started, "Any")) for mean in means)
    assert all(few <= many for few, many in zip(small, large, strict=True))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (fv.V2Drop, "layers"),
        (fv.PyramidDrop, "layer_list"),
        (fv.VisionDrop, "layer_list"),
        (fv.SparseVLM, "pruning_layers"),
        (fv.CLSE, "layers"),
    ],
)
def test_layers_alone_wait_for_a_budget(kind, name):
    waiting = kind(**{name: (1, 17)})
    assert sum(waiting.with_budget(retention=0.5).plan(32, (576,))) / 32 == pytest.approx(288, abs=1)
    with pytest.raises(SettingError, match="length"):
        waiting.plan(32, (576,))


def test_the_floor_is_what_comes_before_the_first_cut():
    for cuts in ((8,), (8, 16, 24)):
        with pytest.raises(BudgetError, match="100 of 576") as refused:
            solve(geometric(576, len(cuts)), cuts, 32, 100, 576, 576, "Mine")
        assert refused.value.floor == pytest.approx((8 + 24 / 576) / 32)


@pytest.mark.parametrize(
    ("mean", "started", "cuts", "keys", "counts"),
    [
        (192, 440, (3, 7, 11, 15), 36, (316, 227, 163, 117)),
        (128, 440, (3, 7, 11, 15), 36, (254, 147, 85, 49)),
        (192, 120, (3, 7, 11, 15), 10, (120,) * 4),  # less is there than may be spent
        (40, 100, (3, 7), 36, (36, 36)),  # never below the key tokens
    ],
)
def test_geometric_counts_by_hand(mean, started, cuts, keys, counts):
    curve = geometric(started, len(cuts), least=keys)
    at = solve(curve, cuts, 32, mean, 576, started, "Any")
    assert tuple(map(half_up, curve(at))) == counts


def test_counts_in_a_ratio_by_hand():
    curve = proportional(576, (330, 210, 62))
    assert list(map(half_up, curve(solve(curve, (1, 11, 21), 32, 192, 576, 576, "Any")))) == [302, 192, 57]
    assert at_cuts((300, 200, 110), 2) == (300, 110)


@pytest.mark.parametrize(
    ("tokens", "ratio", "minimum", "stays"),
    [
        (576, 0.5, 1, 288),
        (288, 0.3, 1, 86),
        (86, 0.0, 1, 1),
        (86, 0.0, 0, 0),
        (100, 0.29, 1, 28),  # 28.999999999999996, as the released code truncates it
        (5, 0.1, 3, 3),
        (2, 0.1, 3, 2),  # no more than there are
        (7, 1.0, 1, 7),
    ],
)
def test_counts_by_hand(tokens, ratio, minimum, stays):
    assert keep_count(tokens, ratio, minimum) == stays
