"""Tensors are picked along a dimension, and made once for a key."""

import threading

import pytest
import torch

from foveate.core.tensors import Memo, seeded, take_along

SHAPES = [
    ((2, 5, 3), (2, 4, 1), 1),
    ((1, 5, 3), (2, 4, 1), 1),
    ((3, 2, 5, 3), (1, 2, 4, 1), -2),
    ((2, 3, 5), (2, 1, 4), 2),
]


@pytest.mark.parametrize(("shape", "places", "dim"), SHAPES, ids=str)
def test_rows_are_those_of_torch(shape, places, dim):
    rng = torch.Generator().manual_seed(0)
    tensor, wanted = torch.randn(shape, generator=rng), torch.randint(5, places, generator=rng)
    assert torch.equal(take_along(tensor, wanted, dim), torch.take_along_dim(tensor, wanted, dim=dim))


def test_what_is_made_is_made_once_a_key():
    memo, calls, shift = Memo(), [], torch.zeros(1)
    keys = [("tables", None), ("tables", shift, None), ("tables", torch.zeros(1), None), ("tables", shift, "local")]
    for key in keys + keys:
        memo.once(lambda key=key: calls.append(key) or key, *key)
    assert len(calls) == len(keys)
    assert memo.once(lambda: "again", "tables", shift, "local") is keys[3]


def test_tensors_are_the_same_by_object_and_numbers_by_value():
    memo = Memo()
    assert memo.once(lambda: 1, "moved", torch.zeros(1), torch.device("cpu")) == 1
    assert memo.once(lambda: 2, "moved", torch.zeros(1), torch.device("cpu")) == 2
    assert memo.once(lambda: 3, "past", 4) == 3
    assert memo.once(lambda: 5, "past", 4) == 3


def test_a_memo_with_a_limit_forgets_the_oldest():
    memo = Memo(limit=2)
    for number in range(3):
        memo.once(lambda number=number: number, number)
    assert [memo.once(lambda: "new", number) for number in (1, 2, 0)] == [1, 2, "new"]


def test_other_objects_are_the_same_by_object_though_they_are_equal():
    memo = Memo()
    assert memo.once(lambda: 1, "mask", [1]) == 1
    assert memo.once(lambda: 2, "mask", [1]) == 2


def test_seeds_of_two_threads_do_not_mix_and_the_generator_is_restored():
    before, drawn = torch.get_rng_state(), {}

    def draw(seed):
        with seeded(torch.device("cpu"), seed):
            drawn[seed] = [torch.rand(1).item() for _ in range(500)]

    threads = [threading.Thread(target=draw, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(drawn) == 4
    for seed, numbers in drawn.items():
        assert numbers == torch.rand(500, generator=torch.Generator().manual_seed(seed)).tolist()
