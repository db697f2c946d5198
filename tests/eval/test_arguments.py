"""`--model_args` of lmms-eval: what is read, what drops, and what is refused."""

import re

import pytest
import transformers

from foveate.contract.method import meet
from foveate.errors import SettingError
from foveate.eval.lmms.model_args import NAMES, Arguments, values_of
from foveate.methods.mustdrop import MustDrop
from foveate.methods.v2drop import V2Drop
from tests.models import TEXT
from tests.tuning.presets import preset_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("method=v2drop:metric=l1;min_keep=2,budget=192", {"method": "v2drop:metric=l1;min_keep=2", "budget": 192.0}),
        (
            "method=v2drop:layers=3,17,22;keep=0.5,0.3,0,max_frames=8",
            {"method": "v2drop:layers=3,17,22;keep=0.5,0.3,0", "max_frames": 8},
        ),
        ("method='v2drop:layers=3,17,22', retention=0.333", {"method": "v2drop:layers=3,17,22", "retention": 0.333}),
        ("method = v2drop, budget = 64", {"method": "v2drop", "budget": 64.0}),
        ("method=v2drop,retention=25%", {"method": "v2drop", "retention": 0.25}),
        ("method=random,seed=3,budget=64.5", {"method": "random", "seed": 3, "budget": 64.5}),
        ("log=007", {"log": "007"}),
        ('{"log": "a,seed=b"}', {"log": "a,seed=b"}),
        (
            '{"method": {"method": "v2drop"}, "budget": "192", "seed": null}',
            {"method": '{"method": "v2drop"}', "budget": 192.0},
        ),
        ({"method": "v2drop", "retention": 0.5}, {"method": "v2drop", "retention": 0.5}),
    ],
)
def test_arguments_are_read_as_the_commands_write_them(text, values):
    read = values_of(text)
    assert read == values
    assert {name: type(value) for name, value in read.items()} == {name: type(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metod=v2drop", "No model argument 'metod'. Did you mean method? There are: pretrained, method"),
        ("max-frames=8", "Did you mean max_frames?"),
        ("method=v2drop,metric=cosine", "method=v2drop:metric=cosine"),
        ("batch_size=4", "--batch_size"),
        ("embedded", "model_args must be NAME=VALUE,NAME=VALUE, or JSON; got 'embedded'."),
        ("method=v2drop,budget=many", "budget should be a valid number; got 'many'."),
        ('{"budget": true}', "budget should be a valid number; got True."),
        ("max_frames=some", "max_frames should be a valid integer; got 'some'."),
        ("method=,budget=192", "method= has no value."),
        ("seed=1,seed =2", "seed is given twice in model_args."),
        ("method=v2drop,method=random", "method is given twice"),
        ('{"log": 5}', "log should be a valid string; got 5."),
        ('{"log": [1]}', "log should be a valid string; got [1]."),
        ('{"method"', "Not valid JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(text, said):
    with pytest.raises(SettingError) as refused:
        Arguments(**values_of(text))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_that_the_guide_shows_can_be_meant(root):
    page = (root / "docs/guides/benchmarks.md").read_text()
    shown = re.findall(r"""--model_args (?:"([^"\n]+)"|'([^'\n]+)'|(\S+)$)""", page, re.MULTILINE)
    assert len(shown) >= 9
    for text in map("".join, shown):
        Arguments(**values_of(text))
    table = page.partition("| argument |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|$)", table, re.MULTILINE)) == sorted(NAMES)


# -- what drops --------------------------------------------------------------------------------------------------------


@pytest.fixture
def config():
    return transformers.LlavaConfig(text_config=transformers.LlamaConfig(**{**TEXT, "num_hidden_layers": 32}))


def solve(setting, config, count):
    """What drops in a sample of so many vision tokens."""
    meet(setting.drops, config, count)
    return setting.drops


@pytest.mark.parametrize("count", [300, 576, 1800])
def test_a_budget_is_solved_for_each_samples_own_count(config, count):
    setting = Arguments(method="v2drop", budget=192)
    assert solve(setting, config, count) == V2Drop.for_budget(config, tokens=192, vision_tokens=count)


def test_the_record_of_a_tuning_goes_as_it_is(config, tmp_path):
    path = tmp_path / "tuned.json"
    thresholds = MustDrop(global_thr=0.002)
    preset_of(thresholds).save(path)
    assert solve(Arguments(method=str(path)), config, 576) == thresholds
    with pytest.raises(SettingError, match="of its own"):
        Arguments(method=str(path), budget=64)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"budget": 192}, "without a method"),
        ({"method": "v2drop", "budget": 192, "retention": 0.3}, "Give one of tokens= and retention="),
        ({"method": "v2drop/llava-1.5-7b/192", "budget": 64}, "of its own"),
        ({"method": "v2drop:metrik=l1"}, "no setting metrik. It has"),
        ({"method": "v2drop", "seed": 1}, "drops nothing at random"),
        ({"method": "v2drop", "budget": "1/3"}, "budget should be a valid number"),
        ({"method": "v2drop", "retention": float("nan")}, "finite"),
        ({"method": "random", "seed": 1.5}, "seed should be a valid integer; got 1.5"),
        ({"method": "v2drop:keep=0.5,0.3,0", "budget": 64}, "of its own"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(values, said):
    with pytest.raises(SettingError, match=said):
        Arguments(**values)
