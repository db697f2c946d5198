import numpy as np
import pytest

from foveate.eval.stats import Resampled, estimate, share


def test_an_interval_holds_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        values = (rng.random(120) < 0.7).astype(float)
        found = Resampled(range(120)).mean(values)
        assert found.value == values.mean()
        held += found.low <= 0.7 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_questions_about_one_picture_share_its_luck():
    values = np.repeat((np.arange(40) % 2).astype(float), 10)
    pictures, alone = Resampled(np.repeat(np.arange(40), 10)).mean(values), Resampled(range(400)).mean(values)
    assert pictures.high - pictures.low > 2.5 * (alone.high - alone.low)  # √10 in theory


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    ours = (rng.random(300) < 0.6).astype(float)
    resampled = Resampled(range(300))
    found = estimate(resampled.means(ours) - resampled.means(ours))
    assert (found.value, found.low, found.high) == (0, 0, 0)
    better = np.maximum(ours, np.arange(300) < 30)
    found = estimate(resampled.means(better) - resampled.means(ours))
    assert 0 <= found.low < found.value < found.high < 0.1
    assert found.value == pytest.approx(better.mean() - ours.mean())


def test_a_share_of_nothing_is_none_and_of_itself_one():
    resampled = Resampled([0, 0, 1, 1])
    values = np.array([1.0, 0.0, 1.0, 1.0])
    means = resampled.means(values)
    assert share(means, resampled.means(np.zeros(4))) is None
    found = share(means, means)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_what_does_not_count_is_left_out():
    values = np.array([1.0, np.nan, 0.0, np.nan])
    found = Resampled([0, 1, 2, 3]).mean(values)
    assert found.value == 0.5
    assert 0 <= found.low <= found.high <= 1
