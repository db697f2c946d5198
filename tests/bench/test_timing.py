"""Interleaved timing: order, warm-up, and intervals that mean something."""

import numpy as np
import pytest
from foveate.cli.timing import interleave, ratio


def test_every_run_is_timed_once_a_round_after_one_warm_up_and_the_order_turns():
    order, now = [], [0.0]

    def work(name, seconds):
        def call():
            order.append(name)
            now[0] += seconds

        return call

    rounds_seen = []
    found = interleave(
        {"a": work("a", 2.0), "b": work("b", 1.0)}, 3, after=lambda: rounds_seen.append(1), clock=lambda: now[0]
    )
    assert found == {"a": [2.0, 2.0, 2.0], "b": [1.0, 1.0, 1.0]}
    assert "".join(order) == "abbaabba"
    assert len(rounds_seen) == 4


def test_the_ratio_is_the_median_over_rounds_so_a_drifting_machine_changes_nothing():
    drift = np.linspace(1, 5, 11)
    found = ratio((drift * 0.5).tolist(), drift.tolist())
    assert (found.median, found.low, found.high, found.rounds) == (0.5, 0.5, 0.5, 11)


def test_one_hiccup_does_not_move_the_median():
    base = [1.0] * 11
    run = [0.7] * 10 + [90.0]
    assert ratio(run, base).median == pytest.approx(0.7)


def test_noise_widens_the_interval_and_it_holds_the_median():
    rng = np.random.default_rng(3)
    quiet = ratio((0.8 + rng.normal(0, 0.01, 20)).tolist(), [1.0] * 20)
    loud = ratio((0.8 + rng.normal(0, 0.2, 20)).tolist(), [1.0] * 20)
    assert quiet.low < quiet.median < quiet.high
    assert loud.high - loud.low > 5 * (quiet.high - quiet.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = ratio(rng.lognormal(np.log(0.7), 0.1, 15).tolist(), [1.0] * 15)
        hits += found.low <= 0.7 <= found.high
    assert 0.88 <= hits / 200 <= 1.0
