import json
import re

import pytest

from foveate.errors import SettingError
from foveate.eval.lmms.setting import NAMES, Setting, values_of


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        (
            "pretrained=embedded,method=v2drop:metric=cosine",
            {"pretrained": "embedded", "method": "v2drop:metric=cosine"},
        ),
        ("method=v2drop:metric=l1;min_keep=2,budget=192", {"method": "v2drop:metric=l1;min_keep=2", "budget": 192.0}),
        (
            "method=v2drop:layers=3,17,22;keep=0.5,0.3,0,max_frames=8",
            {"method": "v2drop:layers=3,17,22;keep=0.5,0.3,0", "max_frames": 8},
        ),
        ("method='v2drop:layers=3,17,22', retention=0.333", {"method": "v2drop:layers=3,17,22", "retention": 0.333}),
        ("method = v2drop, budget = 64", {"method": "v2drop", "budget": 64.0}),
        ("method=v2drop,retention=25%", {"method": "v2drop", "retention": 0.25}),
        ("method=v2drop,retention=1/4", {"method": "v2drop", "retention": 0.25}),
        ("method=v2drop/llava-1.5-7b/192,", {"method": "v2drop/llava-1.5-7b/192"}),
        ("method=random,seed=3,budget=64.5", {"method": "random", "seed": 3, "budget": 64.5}),
        (
            'settings={"metric":"cosine","layers":[3,7]},log=007',
            {"settings": '{"metric":"cosine","layers":[3,7]}', "log": "007"},
        ),
        (
            "settings=metric=cosine;min_keep=2,dtype=float16",
            {"settings": "metric=cosine;min_keep=2", "dtype": "float16"},
        ),
        ("log=bob's,pretrained=al's", {"log": "bob's", "pretrained": "al's"}),
        ('log="a,b",pretrained=2024', {"log": "a,b", "pretrained": "2024"}),
        ('{"log": "a,seed=b"}', {"log": "a,seed=b"}),
        (
            '{"method": {"method": "v2drop"}, "budget": "192", "seed": null}',
            {"method": '{"method": "v2drop"}', "budget": 192.0},
        ),
        ({"method": "v2drop", "retention": 0.5}, {"method": "v2drop", "retention": 0.5}),
    ],
)
def test_arguments_are_read_as_the_commands_write_them(text, values):
    found = values_of(text)
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("metod=v2drop", "No model argument 'metod'. Did you mean method? There are: pretrained, method"),
        ("max-frames=8", "Did you mean max_frames?"),
        ("method=v2drop,metric=cosine", "A method's settings go behind its name: method=v2drop:metric=cosine."),
        ("batch_size=4", "batch_size is a flag of lmms-eval: write --batch_size"),
        ("embedded", "model_args are written NAME=VALUE,NAME=VALUE, or as JSON; got 'embedded'."),
        ("method=v2drop,budget=many", "budget is a number; got 'many'."),
        ('{"budget": true}', "budget is a number; got True."),
        ("max_frames=some", "max_frames is a whole number; got 'some'."),
        ("method=,budget=192", "method= has no value."),
        ("seed=1,seed =2", "seed is given twice in model_args."),
        ("method=v2drop,method=random", "method is given twice"),
        ('{"log": 5}', "log is a text; got 5."),
        ('{"settings": [1]}', "settings is a text; got [1]."),
        ('{"method"', "Not valid JSON"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(text, said):
    with pytest.raises(SettingError) as refused:
        values_of(text)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_all_that_the_guide_shows_can_be_meant(root):
    page = (root / "docs/guides/benchmarks.md").read_text()
    shown = re.findall(r"""--model_args (?:"([^"\n]+)"|'([^'\n]+)'|(\S+)$)""", page, re.MULTILINE)
    assert len(shown) >= 10
    for text in map("".join, shown):
        values = values_of(text)
        method = values.get("method", "")
        asked = {name: values[name] for name in ("budget", "retention", "seed", "settings") if name in values}
        Setting(name=method if isinstance(method, str) else json.dumps(method), **asked)
    table = page.partition("| argument |")[2].partition("\n\n")[0]
    assert sorted(re.findall(r"`(\w+)`(?=[^|]*\|[^|]*\|$)", table, re.MULTILINE)) == sorted(NAMES)


def test_these_are_the_arguments_of_the_model():
    from inspect import signature

    from foveate.eval.lmms.plugin import Foveate

    assert tuple(signature(Foveate).parameters) == (*NAMES, "batch_size", "max_batch_size")
