"""From flags to a method's setting."""

import pytest
from transformers import LlavaConfig

from foveate.cli.options import BudgetOptions
from foveate.cli.setup import parse_methods
from foveate.cli.usage import UsageError
from foveate.errors import SettingError
from foveate.methods.random import Random
from foveate.registry import preset

CONFIG = LlavaConfig()  # LLaVA-1.5-7B's: 32 layers


def choose(name, options, count=576):
    """What `generate` would run."""
    (method,) = parse_methods([name], options).values()
    method.plan(CONFIG.text_config.num_hidden_layers, (count,))  # refuses a budget that it cannot meet
    return method


def mean(method, depth=32, count=576):
    return sum(method.plan(depth, (count,))) / depth


def test_a_preset_is_taken_as_it_is_and_may_be_changed():
    assert choose("v2drop/llava-1.5-7b/64", BudgetOptions()) == preset("v2drop/llava-1.5-7b/64")
    changed = choose("v2drop/llava-1.5-7b/64", BudgetOptions(settings=("metric=cosine",)))
    assert (changed.metric, changed.keep) == ("cosine", (0.05, 0.05, 0.0))


def test_settings_with_a_budget_shape_the_solved_schedule():
    method = choose("v2drop", BudgetOptions(retention=0.4, settings=("metric=l1", "layers=2,9,20")))
    assert (method.metric, method.layers) == ("l1", (2, 9, 20))
    assert mean(method) == pytest.approx(0.4 * 576, abs=1)


def test_the_seed_reaches_methods_that_draw_and_no_others():
    options = BudgetOptions(seed=7)
    assert choose("random", options).seed == 7
    assert (
        parse_methods(["random", "uniform"], options)["uniform"]
        == parse_methods(["uniform"], BudgetOptions())["uniform"]
    )
    assert isinstance(choose("random", BudgetOptions()), Random)


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (["v2drop/llava-1.5-7b/64"], BudgetOptions(budget=64), "brings its own budget"),
        (["v2drop:keep=0.5,0.3,0"], BudgetOptions(retention=0.2), "brings its own budget"),
        (["v2drop/llava-1.5-7b/64+finalkv"], BudgetOptions(retention=0.2), "brings its own budget"),
        (["finalkv"], BudgetOptions(retention=0.2), "or takes none"),
    ],
)
def test_a_method_with_a_budget_of_its_own_takes_no_other(names, options, says):
    with pytest.raises(UsageError, match=says):
        parse_methods(names, options)


def test_with_several_methods_each_takes_the_settings_that_it_has():
    methods = parse_methods(["v2drop", "random"], BudgetOptions(settings=("metric=l1", "layers=2,9,20")))
    assert (methods["v2drop"].metric, methods["v2drop"].layers, methods["random"].layers) == ("l1", *[(2, 9, 20)] * 2)
    with pytest.raises(SettingError, match="setting"):
        parse_methods(["v2drop", "random"], BudgetOptions(settings=("colour=red",)))
