import numpy as np
import pytest
from hypothesis import given, strategies as st

from foveate.plain.stats import LEAST, UNKNOWN, Resampled, estimate, share, wilson


def test_an_interval_holds_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = (rng.random(120) < 0.7).astype(float)
        figure = Resampled(range(120)).mean(values)
        assert figure.value == values.mean()
        held += figure.low <= 0.7 <= figure.high
    assert 0.90 <= held / 200 <= 0.99


def test_questions_about_one_picture_share_its_luck():
    values = np.repeat((np.arange(40) % 2).astype(float), 10)
    pictures, alone = Resampled(np.repeat(np.arange(40), 10)).mean(values), Resampled(range(400)).mean(values)
    assert pictures.high - pictures.low > 2.5 * (alone.high - alone.low)  # √10 in theory


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    ours = (rng.random(300) < 0.6).astype(float)
    resampled = Resampled(range(300))
    difference = estimate(resampled.means(ours) - resampled.means(ours))
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    better = np.maximum(ours, np.arange(300) < 30)
    difference = estimate(resampled.means(better) - resampled.means(ours))
    assert 0 <= difference.low < difference.value < difference.high < 0.1
    assert difference.value == pytest.approx(better.mean() - ours.mean())


def test_a_share_of_nothing_is_unknown_and_of_itself_one():
    resampled = Resampled([0, 0, 1, 1, 2, 3, 4])
    values = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    means = resampled.means(values)
    assert share(means, resampled.means(np.zeros(7))) is UNKNOWN
    ratio = share(means, means)
    assert (ratio.value, ratio.low, ratio.high) == (1, 1, 1)


def test_what_does_not_count_is_left_out():
    values = np.array([1.0, np.nan, 0.0, np.nan, 0.0, 1.0, 0.5])
    figure = Resampled(range(7)).mean(values)
    assert figure.value == 0.5
    assert 0 <= figure.low <= figure.high <= 1


def test_wilsons_interval_is_that_of_the_books():
    """Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263, 15 of 148, 0 of 20 and 1 of 29."""
    books = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0, 0.1611), (1, 29): (0.0061, 0.1718)}
    for (hits, count), (low, high) in books.items():
        interval = wilson(hits / count, count)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(count=st.integers(1, 10_000), hits=st.integers(0, 10_000))
def test_wilsons_interval_holds_the_share_and_stays_in_range(count, hits):
    interval = wilson(min(hits, count) / count, count)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert interval.low < interval.high


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_at_an_edge_the_interval_has_a_width_and_counts_pictures(edge):
    resampled = Resampled([0, 0, 0, 1, 1, 2])
    figure = resampled.proportion(np.full(6, edge))
    assert figure == wilson(edge, 3)
    assert abs(figure.low - figure.high) == pytest.approx(1.96**2 / (3 + 1.96**2), abs=1e-4)
    one_picture_counts = np.array([edge, edge, edge, np.nan, np.nan, np.nan])
    assert resampled.proportion(one_picture_counts) == wilson(edge, 1)


def test_near_an_edge_the_interval_is_longer_inwards():
    values = np.ones(300)
    values[0] = 0
    interval = Resampled(range(300)).proportion(values)
    assert 299 / 300 - interval.low > 1.5 * (interval.high - 299 / 300) > 0


def test_pictures_without_any_spread_count_as_so_many_questions():
    for share_of_draws in (0.5, 2 / 3):  # resamples of thirds differ by rounding errors
        interval = Resampled(range(60)).proportion(np.full(60, share_of_draws))
        assert interval.to_dict() == wilson(share_of_draws, 60).to_dict()
    one_picture = np.array([1.0, 0.0, 1.0])
    assert Resampled([0, 0, 0]).proportion(one_picture) == wilson(2 / 3, 1)


def test_the_interval_of_too_few_pictures_says_nothing():
    """Two pictures differ by luck alone: a bootstrap would call what lies between them certain."""
    for pictures in (2, 4, 5):
        resampled, values = Resampled(np.repeat(np.arange(pictures), 10)), np.arange(pictures * 10) % 7 / 6
        drawn = (resampled.mean(values), resampled.proportion(values), estimate(resampled.over(values, np.mean)))
        assert [np.isnan(interval.low) and np.isnan(interval.high) for interval in drawn] == [pictures < LEAST] * 3
    rare = np.where(np.arange(50) < 40, np.nan, 0.5)  # a task that one picture of five has
    assert np.isnan(resampled.mean(rare).low)
