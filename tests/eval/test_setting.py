import pytest
import transformers

from foveate import naming
from foveate.contract.method import meet
from foveate.errors import BudgetError, SettingError
from foveate.eval.lmms.setting import Setting
from foveate.methods.mustdrop import MustDrop
from foveate.methods.random import Random
from foveate.methods.v2drop import V2Drop
from tests.models import TEXT
from tests.tune.presets import preset_of


@pytest.fixture
def config():
    return transformers.LlavaConfig(text_config=transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 32}))


def solve(setting, config, count):
    """What drops in a sample of so many vision tokens."""
    meet(setting.method, config, count)
    return setting.method


def test_no_method_is_the_full_model():
    assert (Setting().method, Setting().share) == (None, None)


@pytest.mark.parametrize("count", [300, 576, 1800])
def test_a_budget_is_solved_for_each_samples_own_count(config, count):
    setting = Setting(name="v2drop", budget=192)
    assert solve(setting, config, count) == V2Drop.for_budget(config, tokens=192, vision_tokens=count)


def test_the_default_is_a_third(config):
    setting = Setting(name="random", seed=3)
    assert solve(setting, config, 576) == Random.for_budget(config, retention=1 / 3, vision_tokens=576, seed=3)


def test_settings_without_a_budget_are_the_methods_own(config):
    setting = Setting(name="v2drop", settings={"layers": [2, 8], "keep": [0.5, 0.25], "metric": "l1"})
    assert solve(setting, config, 576) == V2Drop(layers=(2, 8), keep=(0.5, 0.25), metric="l1")


def test_the_record_of_a_tuning_goes_as_it_is(config, tmp_path):
    path = tmp_path / "tuned.json"
    thresholds = MustDrop(global_thr=0.002)
    preset_of(thresholds).save(path)
    assert solve(Setting(name=str(path)), config, 576) == thresholds
    with pytest.raises(SettingError, match="brings its own budget"):
        Setting(name=str(path), budget=64)


def test_a_budget_below_the_floor_says_so_when_the_sample_comes(config):
    setting = Setting(name="v2drop", budget=20)
    with pytest.raises(BudgetError, match="floor"):
        solve(setting, config, 576)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget": 192}, "without a method"),
        ({"name": "v2drop", "budget": 192, "retention": 0.3}, "Give one of tokens= and retention="),
        ({"name": "v2drop/llava-1.5-7b/192", "budget": 64}, "brings its own budget"),
        ({"name": "v2drop", "settings": {"metrik": "l1"}}, "no setting metrik. It has"),
        ({"name": "v2drop", "seed": 1}, "drops nothing at random"),
        ({"name": "v2drop", "budget": "1/3"}, "tokens must be a number; got '1/3'"),
        ({"name": "v2drop", "retention": float("nan")}, "above 0"),
        ({"name": "random", "seed": 1.5}, "seed should be a valid integer; got 1.5"),
        ({"name": "v2drop", "settings": "{metric"}, "Not valid JSON"),
        ({"name": "v2drop", "budget": 64, "settings": {"keep": [0.5, 0.3, 0]}}, "brings its own budget"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(values, said):
    with pytest.raises(SettingError, match=said):
        Setting(**values)


def test_a_chain_is_solved_for_every_sample_on_its_way(config):
    setting = Setting(name="visiondrop+v2drop:metric=l1", retention=0.05)
    assert solve(setting, config, 576) == naming.parse("visiondrop+v2drop:metric=l1;retention=0.05")


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
    assert solve(Setting(name="v2drop", settings=settings), config, 576) == V2Drop(layers=(3,), keep=(0.5,))
