import pytest
import transformers

from foveate.contract import naming
from foveate.errors import BudgetError, SettingError, UnknownNameError
from foveate.eval.lmms.setting import Choice, Setting
from foveate.eval.store import FULL, key_of
from foveate.methods.mustdrop import MustDrop
from foveate.methods.random import Random
from foveate.methods.v2drop import V2Drop
from foveate.registry import preset
from foveate.tune import Record
from tests.models import TEXT


@pytest.fixture
def config():
    return transformers.LlavaConfig(text_config=transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 32}))


def test_no_method_is_the_full_model(config):
    choice = Setting().choice(config)
    assert (choice.key, choice.solve) == (FULL, None)
    assert Choice.of(None) == Choice()


def test_a_fixed_method_is_the_same_for_every_sample():
    method = V2Drop()
    choice = Choice.of(method)
    assert choice.solve(100) is choice.solve(2000) is method
    assert choice.key == key_of(method)


@pytest.mark.parametrize("count", [300, 576, 1800])
def test_a_budget_is_solved_for_each_samples_own_count(config, count):
    solve = Setting(name="v2drop", budget=192).choice(config).solve
    assert solve(count) == V2Drop.for_budget(config, tokens=192, vision_tokens=count)
    assert solve(count) is solve(count)


def test_the_default_is_a_third(config):
    solve = Setting(name="random", seed=3).choice(config).solve
    assert solve(576) == Random.for_budget(config, retention=1 / 3, vision_tokens=576, seed=3)


def test_settings_without_a_budget_are_the_methods_own(config):
    solve = (
        Setting(name="v2drop", settings={"layers": [2, 8], "keep": [0.5, 0.25], "metric": "l1"}).choice(config).solve
    )
    assert solve(576) == V2Drop(layers=(2, 8), keep=(0.5, 0.25), metric="l1")


def test_a_preset_goes_as_it_is(config):
    name = "v2drop/llava-1.5-7b/192"
    assert Setting(name=name).choice(config).solve(576) == preset(name)


def test_the_record_of_a_tuning_goes_as_it_is(config, tmp_path):
    path = tmp_path / "tuned.json"
    thresholds = MustDrop(global_thr=0.002)
    Record(
        method=thresholds,
        model="tiny",
        task="",
        samples=4,
        inputs="",
        target=0.5,
        retention=0.49,
        spread=0.01,
        vision_tokens=576.0,
        steps=(),
        versions={},
        date="",
    ).save(path)
    choice = Setting(name=str(path)).choice(config)
    assert choice.solve(576) == thresholds
    with pytest.raises(SettingError, match="brings its own budget"):
        Setting(name=str(path), budget=64)


def test_a_budget_below_the_floor_says_so_when_the_sample_comes(config):
    choice = Setting(name="v2drop", budget=20).choice(config)
    with pytest.raises(BudgetError, match="floor"):
        choice.solve(576)


def test_other_settings_have_other_keys(config):
    asked = [Setting(name="random", budget=64, seed=seed).choice(config).key for seed in (0, 1)]
    assert len({*asked, Setting(name="random", budget=65, seed=0).choice(config).key}) == 3


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget": 192}, "without a method"),
        ({"name": "v2drop", "budget": 192, "retention": 0.3}, "same thing"),
        ({"name": "v2drop/llava-1.5-7b/192", "budget": 64}, "brings its own budget"),
        ({"name": "v2drop", "settings": {"metrik": "l1"}}, "no setting metrik. It has"),
        ({"name": "v2drop", "seed": 1}, "drops nothing at random"),
        ({"name": "v2drop", "budget": "1/3"}, "budget is a number; got '1/3'"),
        ({"name": "v2drop", "retention": float("nan")}, "above 0"),
        ({"name": "random", "seed": 1.5}, "seed is a number; got 1.5"),
        ({"name": 7}, "method is a name"),
        ({"name": "v2drop", "settings": "{metric"}, "Not valid JSON"),
        ({"name": "v2drop", "settings": [1]}, "settings is a dictionary"),
        ({"name": "v2drop", "settings": {"min_keep": 1.5}}, "min_keep should be a valid integer; got 1.5"),
        ({"name": "v2drop", "settings": {"layers": [2.5], "keep": 1}}, r"layers\[0\] should be a valid integer"),
        ({"name": "v2drop", "settings": {"layers": [3], "keep": [0.5, 0.3]}}, "the same length"),
        ({"name": "v2drop", "budget": 64, "settings": {"keep": [0.5, 0.3, 0]}}, "brings its own budget"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(values, said):
    with pytest.raises(SettingError, match=said):
        Setting(**values)


def test_an_unknown_method_is_refused_at_once():
    with pytest.raises(UnknownNameError, match="No method 'v3drop'"):
        Setting(name="v3drop")


def test_a_chain_is_solved_for_every_sample_on_its_way(config):
    solve = Setting(name="visiondrop+v2drop:metric=l1", retention=0.05).choice(config).solve
    assert solve(576) == naming.parse("visiondrop+v2drop:metric=l1;retention=0.05")


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": 3, "keep": 0.5},
        {"layers": [3], "keep": [0.5]},
        '{"layers": 3, "keep": [0.5]}',
        '\'{"layers": 3, "keep": 0.5}\'',
        "layers=3;keep=0.5",
    ],
)
def test_settings_come_as_a_dictionary_or_a_text(config, settings):
    assert Setting(name="v2drop", settings=settings).choice(config).solve(576) == V2Drop(layers=(3,), keep=(0.5,))


@pytest.mark.parametrize("name", ['{"method": "v2drop", "layers": [3], "keep": 0.5}', "'v2drop:layers=3;keep=0.5'"])
def test_a_method_comes_as_json_or_in_quotes(config, name):
    assert Setting(name=name).choice(config).solve(576) == V2Drop(layers=(3,), keep=(0.5,))
