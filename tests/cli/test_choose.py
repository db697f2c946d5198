"""From flags to a method's setting."""

import pytest
from transformers import LlavaConfig

from foveate.cli.asking import named
from foveate.cli.options import BudgetOptions
from foveate.cli.usage import UsageError
from foveate.contract.naming import asked_share, spending
from foveate.errors import BudgetError, SettingError, UnknownNameError
from foveate.methods.random import Random
from foveate.methods.v2drop import V2Drop
from foveate.registry import preset

CONFIG = LlavaConfig()  # LLaVA-1.5-7B's: 32 layers


def choose(name, options, count=576):
    """What `generate` would run."""
    (one,) = named([name], options).values()
    method = spending(one, options.budget, options.retention)
    method.plan(CONFIG.text_config.num_hidden_layers, (count,))  # refuses a budget that it cannot meet
    return method


def mean(method, depth=32, count=576):
    return sum(method.plan(depth, (count,))) / depth


def test_without_flags_a_third_stays():
    assert mean(choose("v2drop", BudgetOptions())) == pytest.approx(192, abs=1)


def test_a_budget_counts_the_tokens_of_this_very_input():
    method = choose("v2drop", BudgetOptions(budget=250), count=1000)
    assert mean(method, count=1000) == pytest.approx(250, abs=1)


def test_a_retention_is_a_share():
    assert mean(choose("uniform", BudgetOptions(retention=0.5))) == pytest.approx(288, abs=1)


def test_a_preset_is_taken_as_it_is_and_may_be_changed():
    assert choose("v2drop/llava-1.5-7b/64", BudgetOptions()) == preset("v2drop/llava-1.5-7b/64")
    changed = choose("v2drop/llava-1.5-7b/64", BudgetOptions(settings=("metric=cosine",)))
    assert (changed.metric, changed.keep) == ("cosine", (0.05, 0.05, 0.0))


def test_settings_without_a_budget_are_the_whole_setting():
    options = BudgetOptions(settings=("layers=2,9", "keep=0.5,0.25"))
    assert choose("v2drop", options) == V2Drop(layers=(2, 9), keep=(0.5, 0.25))


def test_one_number_is_a_list_of_one():
    options = BudgetOptions(settings=("layers=5", "keep=0.5"))
    assert choose("v2drop", options) == V2Drop(layers=(5,), keep=(0.5,))


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("False", False), ("no", False), ("0", False), ("true", True)]
)
def test_a_switch_is_true_or_false_and_never_a_word_that_counts_as_true(word, value):
    assert choose("mustdrop", BudgetOptions(settings=(f"merge_windows={word}",))).merge_windows is value
    with pytest.raises(SettingError, match="merge_windows should be a valid boolean; got 'never'"):
        choose("mustdrop", BudgetOptions(settings=("merge_windows=never",)))


@pytest.mark.parametrize(
    ("name", "setting"), [("v2drop", "layers=a,b"), ("v2drop", "min_keep=few"), ("mustdrop", "global_thr=low")]
)
def test_a_value_of_the_wrong_kind_is_wrong_usage(name, setting):
    for options in (BudgetOptions(settings=(setting,)), BudgetOptions(settings=(setting,), budget=192)):
        with pytest.raises(SettingError, match=setting.partition("=")[0]):
            choose(name, options)


def test_settings_with_a_budget_shape_the_solved_schedule():
    method = choose("v2drop", BudgetOptions(retention=0.4, settings=("metric=l1", "layers=2,9,20")))
    assert (method.metric, method.layers) == ("l1", (2, 9, 20))
    assert mean(method) == pytest.approx(0.4 * 576, abs=1)


def test_the_seed_reaches_methods_that_draw_and_no_others():
    options = BudgetOptions(seed=7)
    assert choose("random", options).seed == 7
    assert named(["random", "uniform"], options)["uniform"] == named(["uniform"], BudgetOptions())["uniform"]
    assert isinstance(choose("random", BudgetOptions()), Random)


def test_a_budget_below_the_floor_names_the_floor():
    with pytest.raises(BudgetError, match="floor is"):
        choose("v2drop", BudgetOptions(budget=20))


def test_a_setting_out_of_its_range_is_refused():
    with pytest.raises(SettingError, match="metric should be 'l2', 'l1'"):
        choose("v2drop", BudgetOptions(settings=("metric=l7",)))


@pytest.mark.parametrize(
    ("pairs", "says"),
    [(("metric",), "write key=value"), (("=3",), "write key=value"), (("seed=1", "seed=2"), "seed is given twice")],
)
def test_pairs_that_mean_nothing_are_refused(pairs, says):
    with pytest.raises(SettingError, match=says):
        named(["random"], BudgetOptions(settings=pairs))


def test_a_setting_is_given_once():
    with pytest.raises(SettingError, match="metric is given twice"):
        named(["v2drop:metric=l2"], BudgetOptions(settings=("metric=l1",)))


def test_a_budget_goes_to_the_last_of_a_chain_that_takes_one():
    chain = choose("visiondrop:layer_list=();image_token_list=()+v2drop+finalkv", BudgetOptions(retention=0.05))
    assert [getattr(member, "retention", None) for member in chain.members] == [None, 0.05, None]
    assert mean(chain) == pytest.approx(0.05 * 576, rel=0.02)
    with pytest.raises(BudgetError, match=r"its floor is 0\.94%, 5\.4 tokens"):
        choose("visiondrop+v2drop", BudgetOptions(budget=2))


def test_what_a_setting_says_it_spends_is_what_was_asked():
    for name, share in (("v2drop:retention=0.4", 0.4), ("v2drop:tokens=144+finalkv", 0.25), ("v2drop", 1 / 3)):
        assert asked_share(choose(name, BudgetOptions()), 576) == pytest.approx(share)
    assert asked_share(V2Drop(metric="l1"), 576) is None


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
        named(names, options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (BudgetOptions(budget=1, retention=0.5), "Give one of tokens= and retention="),
        (BudgetOptions(retention=1.5), "retention must be above 0 and at most 1; got 1.5"),
        (BudgetOptions(retention=0), "above 0"),
        (BudgetOptions(budget=-3), "above 0"),
        (BudgetOptions(settings=("colour=red",)), r"v2drop has no setting colour\. It has: keep"),
        (BudgetOptions(seed=1), "v2drop has no setting seed"),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_by_the_library(options, says):
    with pytest.raises(SettingError, match=says):
        choose("v2drop", options)


def test_with_several_methods_each_takes_the_settings_that_it_has():
    methods = named(["v2drop", "random"], BudgetOptions(settings=("metric=l1", "layers=2,9,20")))
    assert (methods["v2drop"].metric, methods["v2drop"].layers, methods["random"].layers) == ("l1", *[(2, 9, 20)] * 2)
    with pytest.raises(SettingError, match="v2drop, random has no setting colour"):
        named(["v2drop", "random"], BudgetOptions(settings=("colour=red",)))


def test_a_schedule_and_a_budget_contradict_each_other():
    with pytest.raises(UsageError, match="brings its own budget"):
        choose("v2drop", BudgetOptions(budget=192, settings=("keep=0.5,0.3,0",)))
    for setting in ("retention=0.3", "tokens=192"):
        for options in (
            BudgetOptions(budget=192, settings=(setting,)),
            BudgetOptions(retention=0.3, settings=(setting,)),
        ):
            with pytest.raises(UsageError, match="brings its own budget"):
                choose("mustdrop", options)


@pytest.mark.parametrize("name", ["v3drop", "v2drop/llava-9/1"])
def test_an_unknown_name_is_answered_with_the_nearest(name):
    with pytest.raises(UnknownNameError, match=r"Did you mean .*v2drop"):
        named([name], BudgetOptions())
