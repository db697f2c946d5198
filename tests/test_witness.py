"""The witness sees what differs, and its examples are settings that there are."""

import fnmatch
from argparse import Namespace

import pytest
import torch

import foveate as fv
from tests.models import FAMILIES
from tests.witness.__main__ import judged, planned, unchanged
from tests.witness.changed import CHANGED
from tests.witness.compare import compared, differences
from tests.witness.examples import EMBEDDED, EXAMPLES, FIRST, NEW, WRITTEN, stem
from tests.witness.worker import errors_told, last_rows, setting

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


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "untouched"])
def test_an_example_is_a_method(name):
    method = setting(EXAMPLES[name])["method"]
    assert method in {*fv.methods(), *fv.presets()} if isinstance(method, str) else method.name == EXAMPLES[name][0]


def test_every_method_has_settings_and_a_budget():
    old = set(fv.methods()) - NEW
    assert old <= {method for method, settings in WRITTEN.values() if "budget" not in settings}
    assert old - {name.partition("@")[0] for name in EXAMPLES if "@" in name} == {"finalkv"}


def test_the_oldest_tree_runs_what_it_has_and_the_other_one_all_that_may_differ_too():
    families, given = [*FAMILIES, EMBEDDED], Namespace(example=None)
    assert planned("32cba4e", families, given) == {family: list(FIRST) for family in FAMILIES}
    plan = planned("a50230a", families, given)
    assert {name for examples in plan.values() for name in examples} == set(EXAMPLES)
    runs = [f"{family} {name} open" for family, examples in plan.items() for name in examples]
    assert [pattern for pattern in CHANGED if not fnmatch.filter(runs, pattern)] == []


def test_other_settings_are_another_file(monkeypatch):
    before = stem("v2drop")
    monkeypatch.setitem(WRITTEN, "v2drop", ("v2drop", {"layers": (1,), "keep": (0.5,)}))
    assert stem("v2drop") != before


def test_what_is_listed_may_differ_but_not_crash_and_is_told_where_it_does_not(monkeypatch):
    monkeypatch.setattr("tests.witness.__main__.CHANGED", {"* dart *": "another order", "llava tome *": "another sort"})
    assert judged("llava dart one", "DIFFERS", "differs in kept") == ("changed", "another order; differs in kept")
    assert judged("llava fastv one", "DIFFERS", "differs in kept")[0] == "DIFFERS"
    assert judged("llava dart one", "DIFFERS", "crashed: TypeError")[0] == "DIFFERS"
    found = [
        ("changed", "llava dart one: changed"),
        ("equal", "llava dart two: equal"),
        ("equal", "llava tome one: equal"),
    ]
    assert list(unchanged(found)) == ["llava tome *"]


def test_refusals_and_crashes_are_kept():
    found = {}
    for error in (fv.BudgetError("too small"), TypeError("no")):
        with errors_told(found, type(error).__name__):
            raise error
    assert found == {"BudgetError": {"refusal": "BudgetError"}, "TypeError": {"crash": "TypeError: no"}}


def test_padding_on_the_left_is_left_out():
    rows = last_rows(torch.arange(12.0).view(2, 3, 2), [3, 1])
    assert [sample[:, 0].tolist() for sample in rows] == [[0.0, 2.0, 4.0], [10.0]]
    assert len(last_rows(torch.zeros(1, 3, 2), [3, 1])) == 2
