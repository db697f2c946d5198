"""The witness sees what differs, and its examples are settings that there are."""

import pytest
import torch

from tests.witness.compare import compared, differences
from tests.witness.examples import EXAMPLES
from tests.witness.worker import build, last_rows

FACTS = {"kept": [[torch.arange(3)]], "assign": [[None]], "prefill logits": torch.ones(2, 3), "kv lengths": [[4]]}
COUNTS = {"prefill": (900, 4), "decode": (600, 1)}


def test_equal_facts_do_not_differ():
    again = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in FACTS.items()}
    assert compared(FACTS, again, ()) == ("equal", "")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": [[torch.tensor([0, 1, 3])]]}, "kept"),
        ({"kept": [[torch.arange(3, dtype=torch.int32)]]}, "kept"),
        ({"kept": []}, "kept"),
        ({"assign": [[torch.arange(3)]]}, "assign"),
        ({"prefill logits": torch.ones(2, 3) + torch.finfo(torch.float32).eps}, "prefill logits (by 1.2e-07)"),
        ({"kv lengths": [[5]]}, "kv lengths"),
        ({"more": 1}, "more"),
    ],
)
def test_what_differs_is_named(change, said):
    assert differences(FACTS, FACTS | change) == [said]
    assert differences(FACTS | change, FACTS)[0].startswith(said.split(" (")[0])


def test_a_refusal_of_another_class_differs_and_a_crash_is_never_equal():
    refused, other = {"refusal": "SettingError"}, {"refusal": "UnsupportedError"}
    assert compared(refused, refused, ()) == ("equal", "refused by both: SettingError")
    assert compared(refused, other, ())[0] == "DIFFERS"
    assert compared(FACTS, refused, ())[0] == "DIFFERS"
    assert compared({"crash": "TypeError: no"}, {"crash": "TypeError: no"}, ()) == ("DIFFERS", "crashed: TypeError: no")


@pytest.mark.parametrize(
    ("prefill", "verdict"),
    [((900, 4), "equal"), ((899, 4), "fewer"), ((909, 4), "more"), ((910, 3), "DIFFERS"), ((899, 5), "DIFFERS")],
)
def test_more_operators_or_waits_differ_and_fewer_are_told(prefill, verdict):
    found, words = compared(FACTS, FACTS, (COUNTS, COUNTS | {"prefill": prefill}))
    assert found == verdict
    assert f"900 -> {prefill[0]} and 600 -> 600 a step, waits 4 -> {prefill[1]}" in words


@pytest.mark.parametrize("example", EXAMPLES.values(), ids=list(EXAMPLES))
def test_an_example_is_a_method(example):
    assert build(example).name == example[0]


def test_padding_on_the_left_is_left_out():
    rows = last_rows(torch.arange(12.0).view(2, 3, 2), [3, 1])
    assert [sample[:, 0].tolist() for sample in rows] == [[0.0, 2.0, 4.0], [10.0]]
    assert len(last_rows(torch.zeros(1, 3, 2), [3, 1])) == 2
