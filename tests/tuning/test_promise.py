"""What a second look can promise: the bound is exact, the threshold keeps it, and too few samples promise nothing."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, strategies as st

from foveate.plain.stats import RISK, bound
from foveate.tuning.promise import fewest, one_each, threshold

SCIPY = [  # wrong, samples, risk, scipy.stats.beta.ppf(1 - risk, wrong + 1, samples - wrong), of scipy 1.17.1
    (0, 1, 0.1, 0.9), (0, 22, 0.1, 0.09937197978872149), (0, 114, 0.1, 0.019995499372304923),
    (0, 230, 0.1 / 3, 0.014679011949616027), (1, 30, 0.1, 0.12356999067525615),
    (2, 300, 0.1 / 3, 0.022628438119474695), (3, 300, 0.1, 0.022132940895274917),
    (6, 1000, 0.1, 0.010508211524268134), (13, 1000, 0.1 / 3, 0.021504006683106352),
    (50, 1000, 0.05, 0.06286340351237973), (29, 30, 0.1, 0.9964941427304151),
    (500, 1000, 0.1, 0.5207490091502252), (999, 1000, 0.1, 0.9998946450345664),
    (75, 5000, 0.1 / 6, 0.0191022903684937), (1437, 20000, 0.01, 0.0762081542490743),
]  # fmt: skip
DRAWS = 2000
NOISE = 3 * math.sqrt(RISK * (1 - RISK) / DRAWS)
"""Three standard errors of the share of draws: what the simulation itself may be off."""


@pytest.mark.parametrize(("wrong", "samples", "risk", "expected"), SCIPY)
def test_the_bound_is_clopper_and_pearsons(wrong, samples, risk, expected):
    assert bound(wrong, samples, risk) == pytest.approx(expected, abs=1e-12)


def test_the_fewest_samples_by_agreement_and_settings():
    agreements = (0.9, 0.95, 0.98, 0.99)
    assert [fewest(agreement) for agreement in agreements] == [22, 45, 114, 230]
    assert [fewest(agreement, 3) for agreement in agreements] == [33, 67, 169, 339]
    for agreement in agreements:
        assert bound(0, fewest(agreement), RISK) <= 1 - agreement < bound(0, fewest(agreement) - 1, RISK)


def test_a_threshold_by_hand():
    """Three of 30 may not be wrong at 80 % (U(3, 30) = .21), two may (.17): the third wrong one, at .4, ends it."""
    right = [(0.5 + place / 100, True) for place in range(27)]
    wrong = [(0.6, False), (0.45, False), (0.4, False)]
    assert threshold([*right, *wrong], 0.8) == 0.45
    assert threshold(right + [(0.9, False)] * 3, 0.8) is None


def test_equal_confidences_are_trusted_together_or_not_at_all():
    samples = [(0.9, True)] * 40 + [(0.5, True)] * 10 + [(0.5, False)] * 10
    for seed in range(5):
        random.Random(seed).shuffle(samples)
        assert threshold(samples, 0.9) == 0.9


def test_all_alike_are_one_threshold_or_none():
    assert threshold([(1.0, True)] * 22, 0.9) == 1.0
    assert threshold([(1.0, True)] * 21, 0.9) is None
    assert threshold([(0.3, True)] * 18 + [(0.3, False)] * 4, 0.9) is None


def test_what_is_no_number_counts_and_is_never_trusted():
    samples = [(0.9, True)] * 30 + [(math.nan, False)] * 5
    assert threshold(samples, 0.9) == 0.9
    assert threshold([(math.nan, True)] * 50, 0.9) is None
    assert threshold([], 0.9) is None


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=120), st.sampled_from([0.7, 0.9, 0.95]))
def test_at_a_threshold_and_above_it_the_bound_holds_and_below_it_does_not(drawn, agreement):
    samples = [(level / 10, agrees) for level, agrees in drawn]
    trusted = threshold(samples, agreement)

    def allowed(least):
        wrong = sum(not agrees for confidence, agrees in samples if confidence >= least)
        return bound(wrong, len(samples), RISK) <= 1 - agreement

    levels = sorted({confidence for confidence, _ in samples}, reverse=True)
    holding = [level for place, level in enumerate(levels) if all(map(allowed, levels[: place + 1]))]
    assert trusted == (holding[-1] if holding else None)


# -- calibrations of populations whose true risk is known ------------------------------------------------------------


def population(seed, sharp=4.0, size=4000):
    """Confidences, and whether answers agree: the surer the likelier, as well as `sharp` says; some are equal."""
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.beta(3, 1, size), 2)
    agrees = rng.random(size) < 1 - 0.6 * (1 - confidence) ** (1 / sharp)
    return confidence, agrees


def risk_of(people, trusted):
    """The true share of trusted answers that differ."""
    confidence, agrees = people
    return 0.0 if trusted is None else float(((confidence >= trusted) & ~agrees).mean())


@pytest.mark.parametrize("agreement", [0.8, 0.9, 0.95, 0.98])
def test_calibrations_exceed_what_is_promised_in_no_more_than_their_risk(agreement):
    people = population(1)
    rng = np.random.default_rng(2)
    above = 0
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(people[0]), 200)
        pairs = list(zip(people[0][drawn].tolist(), people[1][drawn].tolist(), strict=True))
        above += risk_of(people, threshold(pairs, agreement)) > 1 - agreement
    assert above / DRAWS <= RISK + NOISE


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_one_question_of_each_picture_is_drawn_whichever():
    pictures = ["a", "b", "a", "c", "a"]
    drawn = {tuple(one_each(pictures, seed)) for seed in range(40)}
    assert drawn == {(0, 1, 3), (1, 2, 3), (1, 3, 4)}
    assert one_each(pictures, 7) == one_each(pictures, 7)
