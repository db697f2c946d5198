"""Methods at budgets: a row each, the seed where none is written, controls that cut early, and what cannot be met."""

import pytest

import foveate as fv
from foveate.bench.contenders import METHODS, at_budgets, named_methods
from foveate.bench.shapes import shape

CONFIG = shape("llava-1.5-7b").make_config()


def solved(*names, **budgets):
    return at_budgets(named_methods(names), CONFIG, 576, **budgets)


def test_every_method_has_a_row_at_every_budget():
    methods, infeasible = solved("v2drop", "visiondrop", tokens=(192, 64))
    assert list(methods) == ["v2drop 192", "v2drop 64", "visiondrop 192", "visiondrop 64"]
    assert methods["v2drop 192"] == fv.V2Drop.for_budget(CONFIG, tokens=192, vision_tokens=576)
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
