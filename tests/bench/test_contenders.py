"""Methods at budgets: a row each, the seed where none is written, controls that cut early, and what cannot be met."""

import pytest

import foveate as fv
from foveate.bench.contenders import METHODS, at_budgets, compared, named_methods
from foveate.bench.shapes import shape
from foveate.contract import catalogue

CONFIG = shape("llava-1.5-7b").make_config()


def solved(*names, **budgets):
    return at_budgets(named_methods(names), CONFIG, 576, **budgets)


def beside_random(*names, **budgets):
    named, left_out = compared(names)
    methods, infeasible = at_budgets(named, CONFIG, 576, passes_over=fv.SettingError, **budgets)
    return methods, left_out | infeasible


def test_every_method_has_a_row_at_every_budget():
    methods, infeasible = solved("v2drop", "visiondrop", tokens=(192, 64))
    assert list(methods) == ["v2drop 192", "v2drop 64", "visiondrop 192", "visiondrop 64"]
    assert methods["v2drop 192"] == fv.V2Drop(retention=1 / 3)
    assert infeasible == {}


def test_without_a_word_the_usual_methods_get_a_third():
    methods, _ = solved()
    assert list(methods) == [f"{name} 192" for name in METHODS]


def test_what_has_a_schedule_of_its_own_has_one_row_without_a_budget():
    methods, _ = solved("uniform:layers=2;keep=0.5", retention=(0.5, 0.25))
    assert methods == {"uniform:layers=2;keep=0.5": fv.Uniform(layers=(2,), keep=(0.5,))}


@pytest.mark.parametrize(("name", "seed"), [("random", 7), ("random:seed=3", 3)])
def test_random_dropping_has_the_seed_of_the_run_unless_it_is_written(name, seed):
    methods, _ = solved(name, retention=(0.5,), seed=7)
    assert methods[f"{name} 288"].seed == seed


def test_every_member_of_a_chain_that_is_random_gets_the_seed():
    methods, _ = solved("random+finalkv", retention=(0.5,), seed=7)
    (chain,) = methods.values()
    assert chain.members[0].seed == 7


def test_a_control_that_cannot_meet_a_budget_cuts_before_the_decoder():
    methods, infeasible = solved("random", "v2drop", tokens=(20,))
    assert list(methods) == ["random 20"]
    assert methods["random 20"].layers == (0,)
    assert "floor" in infeasible["v2drop 20"]


def test_a_control_whose_layers_are_written_stays_there():
    with pytest.raises(fv.SettingError, match="floor"):
        solved("random:layers=16", tokens=(20,))


def test_a_budget_above_the_prompt_is_refused():
    with pytest.raises(fv.SettingError, match="600 tokens: the prompt has 576 vision tokens"):
        solved("v2drop", tokens=(192, 600))


def test_all_is_every_method_that_takes_the_budget_and_random_stands_beside_them():
    methods, left_out = beside_random("all", tokens=(192,))
    names = {name.removesuffix(" 192") for name in (*methods, *left_out)}
    assert names == set(fv.methods()) - {"random"}
    assert left_out["finalkv"] == "takes no budget."
    assert methods["v2drop 192"] == fv.V2Drop(retention=1 / 3)


def test_what_is_below_a_floor_is_left_out_and_the_floor_is_named():
    methods, left_out = beside_random("v2drop", "visiondrop", tokens=(20, 192))
    assert list(methods) == ["v2drop 192", "visiondrop 20", "visiondrop 192"]
    assert "floor" in left_out["v2drop 20"]


def test_a_method_of_another_package_is_one_of_all():
    class Other(fv.VidCom2):
        name = "other"

    fv.register_method(Other)
    try:
        methods, _ = beside_random("all")
    finally:
        catalogue.extra.pop("other")
    assert methods["other 192"] == Other(retention=1 / 3)


def test_a_method_that_refuses_the_model_is_left_out_of_all():
    class Picky(fv.Uniform):
        name = "picky"

        def solve(self, depth, entered, started):
            raise fv.SettingError("picky wants 40 layers")

    fv.register_method(Picky)
    try:
        methods, left_out = beside_random("all")
        with pytest.raises(fv.SettingError, match="wants 40 layers"):
            solved("picky", "v2drop")
    finally:
        catalogue.extra.pop("picky")
    assert left_out["picky 192"] == "picky wants 40 layers"
    assert "v2drop 192" in methods


@pytest.mark.parametrize(
    ("names", "budget", "told"),
    [
        (("random",), 192, "Random dropping is what others are compared with"),
        (("v2drop",), 20, "floor"),
        (("v2drop",), 600, "the prompt has 576 vision tokens"),
        (("all", "v2drop"), 192, "all"),
    ],
)
def test_nothing_to_compare_is_refused(names, budget, told):
    with pytest.raises(fv.FoveateError, match=told):
        beside_random(*names, tokens=(budget,))
