"""Interleaved timing: order, warm-up, and intervals that mean something."""

import numpy as np

from foveate.bench.timing import Ratio, ratio, rounds


def test_every_run_is_called_once_a_round_after_one_warm_up_in_an_order_that_changes():
    order, ends = [], []
    runs = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}
    results = list(rounds(runs, 20, seed=1, after=lambda: ends.append(len(order))))
    assert ends == list(range(3, 66, 3))
    assert len(results) == 20
    assert all(list(one) == ["a", "b", "c"] for one in results)
    assert sorted(value for one in results for value in one.values()) == list(range(4, 64))
    each = ["".join(order[at : at + 3]) for at in range(0, 63, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in each)
    assert len(set(each)) == 6


def test_those_that_are_compared_run_one_right_after_the_other():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "abcde"}
    list(rounds(runs, 40, beside={"d": "b", "e": "b"}))
    each = ["".join(order[at : at + 5]) for at in range(0, len(order), 5)]
    places = [sorted(one.index(name) for name in "bde") for one in each]
    assert all(last - first == 2 for first, _, last in places)
    assert {first for first, _, _ in places} == {0, 1, 2}
    assert {"".join(name for name in one if name in "bde") for one in each} == {
        "bde", "bed", "dbe", "deb", "ebd", "edb"
    }  # fmt: skip


def test_the_ratio_is_the_median_over_rounds_so_a_drifting_machine_changes_nothing():
    drift = np.linspace(1, 5, 11)
    share = ratio((drift * 0.5).tolist(), drift.tolist())
    assert (share.median, share.low, share.high, share.rounds) == (0.5, 0.5, 0.5, 11)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        share = ratio(rng.lognormal(np.log(0.7), 0.1, 15).tolist(), [1.0] * 15)
        hits += share.low <= 0.7 <= share.high
    assert 0.88 <= hits / 200 <= 1.0


def test_a_machine_is_noisy_where_the_interval_of_a_run_over_itself_does_not_hold_one():
    assert not Ratio(1.1, 1.05, 1.2, 10).holds_one
    assert Ratio(1.1, 0.99, 1.2, 10).holds_one
