"""Settings: what does not fit is one sentence, and plain dataclasses of third parties are methods too."""

import json
import math
from dataclasses import FrozenInstanceError, dataclass, replace

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig

import foveate as fv
from foveate import naming, registry
from foveate.contract import Hidden, LayerStage, LayerView, Shape
from foveate.contract.method import Chain
from foveate.contract.settings import Layer, Share
from foveate.methods.averagepool import AveragePool
from foveate.methods.resize import Resize

V2DROP, VISIONDROP, MUSTDROP = fv.V2Drop, fv.VisionDrop, fv.MustDrop


# -- wrong types and values ------------------------------------------------------------------------------------

WRONG_TYPES = [
    (V2DROP, {"keep": 0.5}, r"keep should be a tuple, such as \(0.5,\); got 0.5"),
    (V2DROP, {"keep": ("half", 0.3, 0.0)}, r"keep\[0\] should be a valid number"),
    (V2DROP, {"layers": (True, 17, 22)}, r"layers\[0\] should be a valid integer"),
    (V2DROP, {"min_keep": 1.5}, "min_keep should be a valid integer; got 1.5"),
    (V2DROP, {"reverse": 1}, "reverse should be a valid boolean"),
    (V2DROP, {"metric": ["l2"]}, "metric should be 'l2', 'l1', 'cosine' or 'relative'"),
    (VISIONDROP, {"image_token_list": ((1,),)}, r"image_token_list\[0\]\[1\] is missing"),
    (Chain, {"members": (5, V2DROP())}, r"members\[0\] should be"),
]
NOT_FINITE = [
    (V2DROP, {"keep": (math.inf, 0.3, 0.0)}, r"keep\[0\] should be a finite number"),
    (V2DROP, {"tokens": math.inf}, "tokens should be a finite number"),
    (Resize, {"keep": math.nan}, "keep should be a finite number"),
]
OUT_OF_RANGE = [
    (AveragePool, {"keep": 0}, "keep should be"),
    (fv.CLSE, {"layers": (2, 11, 21)}, "must begin with 1"),
    (fv.DART, {"layer": 0}, "layer should be greater than or equal to 1"),
    (fv.DART, {"pivots": 0}, "pivots should be greater than or equal to 1"),
    (fv.FastV, {"layers": (0,)}, "layers must be 1 or later for this method; got 0"),
    (fv.FinalKV, {"first_layer": -1}, "first_layer should be greater than or equal to 0"),
    (fv.HiPrune, {"object_layer": 24}, "object_layer should be less than or equal to 23"),
    (fv.HoloV, {"tau": -1.0}, "tau should be greater than"),
    (MUSTDROP, {"pruning_layers": ()}, "at least one decoder layer"),
    (MUSTDROP, {"merge_window": 1}, "merge_window should be greater than or equal to 2"),
    (MUSTDROP, {"retention": 0.5, "global_thr": 0.01}, "either global_thr or a budget"),
    (fv.PriorTR, {"question": "first"}, "question should be"),
    (fv.Random, {"scope": "clip"}, "scope should be 'sample', 'image' or 'frame'; got 'clip'"),
    (fv.Scope, {"alpha": -1.0}, "alpha should be greater than or equal to 0"),
    (fv.SparseVLM, {"reference": 0}, "reference should be greater than or equal to 1"),
    (fv.VidCom2, {"keep": 0.0}, "keep should be greater than 0"),
    (VISIONDROP, {"dominant": 0, "contextual": 3}, "at least one dominant token"),
    (VISIONDROP, {"queries": 0}, "queries should be"),
    (fv.VisPruner, {"per_round": 0}, "per_round should be"),
    (fv.VScan, {"entry": 0.5}, "entry should be"),
]
CONTRADICTIONS = [
    (V2DROP, {"layers": (3, 9), "keep": (0.5,)}, "must have the same length"),
    (V2DROP, {"layers": (9, 3), "keep": (0.5, 0.5)}, "layers must ascend strictly; got"),
    (V2DROP, {"retention": 0.3, "tokens": 100}, "Give one of tokens= and retention="),
    (V2DROP, {"retention": 0.3, "keep": (0.5, 0.3, 0.0)}, "either keep or a budget"),
    (V2DROP, {"retention": 0.0}, "retention should"),
    (VISIONDROP, {"retention": 0.3, "image_token_list": ((1, 1),)}, "either image_token_list or a budget"),
    (fv.CLSE, {"keep": (0.5, 0.6, 0.1)}, "that never increase"),
    (fv.CLSE, {"keep": (0.5, 0.4, 0.1), "tokens": 9}, "either keep or a budget"),
    (fv.DART, {"target": 100, "retention": 0.3}, "either target or a budget"),
    (fv.DyCoke, {"k": 0.5, "retention": 0.5}, "either k or a budget"),
    (fv.PyramidDrop, {"image_token_ratio_list": (0.5, 0.25, 0.3)}, "that never increase"),
    (fv.VisionZip, {"dominant": 12, "retention": 0.3}, "not both"),
    (fv.VScan, {"keep": (0.5, 0.5), "tokens": 9}, "either keep or a budget"),
]
REFUSED = [*WRONG_TYPES, *NOT_FINITE, *OUT_OF_RANGE, *CONTRADICTIONS]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED)
def test_what_does_not_fit_is_one_sentence(kind, settings, message):
    with pytest.raises(fv.SettingError, match=message) as refused:
        kind(**settings)
    said = str(refused.value)
    assert said.endswith(".")
    assert "\n" not in said
    assert len(said) < 300
    assert refused.value.__cause__ is None


# -- what fits -------------------------------------------------------------------------------------------------


def test_lists_ranges_and_numbers_of_other_libraries_are_pythons():
    import numpy as np

    method = V2DROP(layers=range(1, 4), keep=[np.float32(0.5), torch.tensor(0.25), 0], min_keep=np.int64(2))
    assert method == V2DROP(layers=(1, 2, 3), keep=(0.5, 0.25, 0.0), min_keep=2)
    assert {type(value) for value in (*method.layers, method.min_keep)} == {int}
    assert {type(value) for value in method.keep} == {float}
    assert json.loads(json.dumps(method.to_dict()))["keep"] == [0.5, 0.25, 0.0]


def test_a_setting_cannot_be_changed_but_made_anew():
    method = V2DROP()
    with pytest.raises(FrozenInstanceError, match="another"):
        method.metric = "l1"
    with pytest.raises(FrozenInstanceError):
        del method.metric
    assert replace(method, metric="l1") == V2DROP(metric="l1") != method
    assert hash(replace(method, metric="l2")) == hash(method)


# -- budgets from outside --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [V2DROP, fv.Random, fv.Uniform, VISIONDROP, MUSTDROP, AveragePool, Resize])
def test_a_budget_from_outside_takes_the_place_of_the_counts(kind):
    method = kind().with_budget(retention=0.3)
    assert method.retention == 0.3
    again = method.with_budget(tokens=100)
    assert (again.tokens, again.retention or None) == (100, None)
    assert kind.from_dict(json.loads(json.dumps(again.to_dict()))) == again
    for wrong in ({}, {"tokens": 5, "retention": 0.5}):
        with pytest.raises(fv.SettingError, match="tokens="):
            kind().with_budget(**wrong)


def test_a_budget_from_outside_leaves_other_settings_as_they_are():
    assert V2DROP(metric="l1", scope="image").with_budget(retention=0.3) == V2DROP(
        metric="l1", scope="image", retention=0.3
    )
    assert V2DROP(layers=(1, 17, 22)).with_budget(tokens=64).layers == (1, 17, 22)
    assert VISIONDROP(positions="keep").with_budget(tokens=64) == VISIONDROP(positions="keep", tokens=64)
    assert MUSTDROP(key_rate=0.02).with_budget(tokens=64).key_rate == 0.02
    with pytest.raises(fv.SettingError, match="FinalKV"):
        fv.FinalKV().with_budget(retention=0.3)


# -- methods of third parties ----------------------------------------------------------------------------------


def stages_of(method, shape):
    return (LayerStage(method.layer, reads=(Hidden(),), keep=method.keep, score=lambda view: view.hidden.norm(dim=-1)),)


@dataclass(frozen=True, slots=True)
class Slotted(fv.Method):
    """A frozen dataclass of its author's own."""

    name = "slotted"

    layer: Layer = 2
    keep: Share = 0.5
    stages = stages_of


@dataclass(frozen=True, kw_only=True)
class Untyped(fv.Method):
    """With annotations that say less."""

    name = "untyped"

    layer: int = 2
    keep: float = 0.5
    stages = stages_of


class Bare(fv.Method):
    """As methods are written today."""

    name = "bare"

    layer: Layer = 2
    keep: Share = 0.5
    stages = stages_of


@pytest.mark.parametrize("kind", [Slotted, Untyped, Bare])
def test_a_third_partys_method_works(kind):
    method = kind(keep=0.25)
    (stage,) = method.stages(Shape(depth=6))
    assert stage.cut(LayerView(torch.arange(8.0)[:, None])).source.tolist() == [6, 7]
    assert method.plan(4, (8,)) == (8, 8, 2, 2)
    assert kind.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert replace(method, layer=3).plan(4, (8,)) == (8, 8, 8, 2)
    assert len({method, kind(keep=0.25), kind()}) == 2
    with pytest.raises(fv.SettingError, match="integer"):
        kind(layer=2.5)
    with pytest.raises(fv.SettingError, match="finite"):
        kind(keep=math.inf)
    with pytest.raises(fv.SettingError, match="decoder"):
        method.plan(2, (9,))
    with pytest.raises((FrozenInstanceError, TypeError)):
        method.keep = 0.5
    assert len((method + fv.FinalKV()).stages(Shape(depth=6))) == 2


# -- values that nobody means, however they are given ------------------------------------------------------------

MODEL = LlavaConfig(text_config=LlamaConfig(num_hidden_layers=32), image_seq_length=576)


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


NESTED, LONG, DIGITS = nested(3000), "x" * 5000, 10**5000


def refused(call, says):
    with pytest.raises(fv.SettingError, match=says) as error:
        call()
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


ODD = {
    "deep": NESTED,
    "deep in a list": [NESTED],
    "deep in a dictionary": {"a": NESTED},
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
    refused(lambda: registry.from_dict({"method": "v2drop", name: value}), name)


@pytest.mark.parametrize(
    "values", [NESTED, {"method": NESTED}, {"method": "chain", "members": {"a": NESTED}}, {"method": LONG}]
)
def test_settings_without_a_method(values):
    with pytest.raises((fv.SettingError, fv.UnknownNameError)) as error:
        registry.from_dict(values)
    assert len(str(error.value)) < 500


def test_names_of_settings_that_are_none():
    refused(lambda: registry.from_dict({"method": "v2drop", LONG: 1}), "v2drop has no setting xxx")
    refused(lambda: registry.from_dict({"method": "v2drop", 1: 1, "x": 2}), "v2drop has no setting 1, x")
    refused(lambda: naming.parse(f"v2drop:{LONG}"), "write key=value")
    refused(lambda: naming.parse(f"v2drop:{LONG}=1"), "no setting xxx")


# -- calls -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fv.drop(None, "v2drop", keep=0.3), r"drop has no setting keep.* fv.V2Drop\(keep=0.3\)"),
        (lambda: fv.drop(None, "v2drop:metric=l1", keep=0.3), r"fv.V2Drop\(keep=0.3\)"),
        (lambda: fv.apply(None, fv.FastV(), layers=(2,)), r"apply has no setting layers.* fv.FastV\(layers=\(2,\)\)"),
        (lambda: fv.drop(None, "v2drop", retension=0.3), "Did you mean retention"),
        (lambda: fv.VLM.ask(None, "a.png", "Who?", method="v2drop", keep=0.3), r"fv.V2Drop\(keep=0.3\)"),
        (lambda: fv.VLM.ask_many(None, [], method="v2drop", keep=0.3), r"fv.V2Drop\(keep=0.3\)"),
        (lambda: fv.tune(None, [], method="v2drop", keep=0.3), r"fv.V2Drop\(keep=0.3\)"),
        (lambda: fv.load("embedded", devise="cpu"), "no setting devise.* Did you mean device"),
    ],
)
def test_an_unknown_keyword_says_of_what_and_where_it_goes(call, said):
    with pytest.raises(TypeError, match=said) as caught:
        call()
    assert isinstance(caught.value, fv.SettingError)


@pytest.mark.parametrize("name", ["full", "none", "Baseline", "untouched"])
def test_a_name_for_the_full_model_says_to_leave_the_method_out(name):
    with pytest.raises(fv.UnknownNameError, match="leave the method out"):
        naming.method_of(name)
