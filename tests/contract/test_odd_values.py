"""Values that nobody means end in one short line that names the setting, however they are given."""

import pytest
from transformers import LlamaConfig, LlavaConfig

import foveate as fv
from foveate.contract import catalogue, naming

MODEL = LlavaConfig(text_config=LlamaConfig(num_hidden_layers=32), image_seq_length=576)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


DEEP, LONG, DIGITS = nested(3000), "x" * 5000, 10**5000


def refused(call, says):
    with pytest.raises(fv.SettingError, match=says) as error:
        call()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


ODD = {
    "deep": DEEP,
    "deep in a list": [DEEP],
    "deep in a dictionary": {"a": DEEP},
    "long": LONG,
    "many": [LONG] * 99,
    "digits": DIGITS,
    "nan": float("nan"),
    "control": "\x1b[31m\n",
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", ["keep", "layers", "metric", "retention"])
def test_a_value_that_nobody_means(name, value):
    refused(lambda: fv.V2Drop(**{name: value}), name)
    refused(lambda: catalogue.from_dict({"method": "v2drop", name: value}), name)


@pytest.mark.parametrize(
    "values", [DEEP, {"method": DEEP}, {"method": "chain", "members": {"a": DEEP}}, {"method": LONG}]
)
def test_settings_without_a_method(values):
    with pytest.raises((fv.SettingError, fv.UnknownNameError)) as error:
        catalogue.from_dict(values)
    assert len(str(error.value)) < 500


def test_names_of_settings_that_are_none():
    refused(lambda: catalogue.from_dict({"method": "v2drop", LONG: 1}), "v2drop has no setting xxx")
    refused(lambda: catalogue.from_dict({"method": "v2drop", 1: 1, "x": 2}), "v2drop has no setting 1, x")
    refused(lambda: naming.parse(f"v2drop:{LONG}"), "write key=value")
    refused(lambda: naming.parse(f"v2drop:{LONG}=1"), "no setting xxx")


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        ({"tokens": 10**400}, "tokens must be a finite number above 0; got 1000"),
        ({"tokens": "x"}, "tokens must be a number; got 'x'"),
        ({"tokens": 1, "retention": DEEP}, "Give one of tokens= and retention="),
        ({"tokens": 64, "vision_tokens": 0}, "vision_tokens is the number of the image's tokens, 1 or more; got 0"),
        ({"tokens": 64, "vision_tokens": "x"}, "vision_tokens is the number .* got 'x'"),
        ({"tokens": 64, "vision_tokens": 57.5}, "vision_tokens is the number .* got 57.5"),
        ({"tokens": 64, "vision_tokens": True}, "vision_tokens is the number .* got True"),
        ({"tokens": 64, "vision_tokens": float("nan")}, "vision_tokens is the number .* got nan"),
        ({"tokens": 64, "vision_tokens": 10**400}, "vision_tokens is the number .* got 1000"),
    ],
    ids=range(9),
)
def test_a_budget_that_nobody_means(budget, says):
    refused(lambda: fv.V2Drop.for_budget(MODEL, **budget), says)


def test_a_budget_of_more_digits_than_python_writes():
    refused(lambda: fv.V2Drop.for_budget(MODEL, tokens=DIGITS), "finite number above 0; got a value of type int")


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (fv.AveragePool, {"keep": 0.5}, "AveragePool: give either keep or a budget"),
        (fv.V2Drop, {"min_keep": [1]}, r"V2Drop: min_keep should be a valid integer; got \[1\]"),
        (fv.V2Drop, {"layers": 3.7}, "layers should be a valid tuple"),
        (fv.V2Drop, {"layers": (3.7, 17, 22)}, r"layers\[0\] should be a valid integer"),
        (fv.V2Drop, {"keeep": 1}, "v2drop has no setting keeep"),
        (fv.MustDrop, {"key_rate": "x"}, "key_rate should be a valid number"),
    ],
)
def test_a_setting_beside_a_budget_that_nobody_means(kind, values, says):
    refused(lambda: kind.for_budget(MODEL, retention=0.5, **values), says)


def test_an_image_without_tokens_keeps_none():
    for method in (fv.VisionDrop(tokens=64), fv.VisionDrop(retention=0.5), fv.VisionDrop()):
        assert method.plan(32, (0,)) == (0,) * 32


def test_a_layer_is_a_whole_number_in_every_way_of_writing_it():
    with pytest.raises(fv.SettingError, match=r"layers\[0\] should be a valid integer"):
        fv.V2Drop(layers=(3.7, 17, 22))
    with pytest.raises(fv.SettingError, match=r"layers\[0\] should be a valid integer"):
        naming.parse("v2drop:layers=3.7,17,22")
    with pytest.raises(fv.SettingError, match=r"layers\[0\] should be a valid integer"):
        catalogue.from_dict({"method": "v2drop", "layers": [3.7, 17, 22]})
