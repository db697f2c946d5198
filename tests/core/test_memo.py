"""What is made once: keys are the same by object, or by value where they are names and numbers."""

import torch

from foveate.core.memo import Memo


def test_what_is_made_is_made_once_a_key():
    memo, made, shift = Memo(), [], torch.zeros(1)
    keys = [("tables", None), ("tables", shift, None), ("tables", torch.zeros(1), None), ("tables", shift, "local")]
    for key in keys + keys:
        memo.once(lambda key=key: made.append(key) or key, *key)
    assert len(made) == len(keys)
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
