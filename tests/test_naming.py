"""One grammar for methods, in every command and in Python."""

import json
from dataclasses import replace

import pytest

import foveate as fv
from foveate import registry
from foveate.contract.method import Chain
from foveate.errors import SettingError
from foveate.naming import parse, refuse_files


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("v2drop", fv.V2Drop()),
        (" v2drop ", fv.V2Drop()),
        ("v2drop:metric=cosine", fv.V2Drop(metric="cosine")),
        ("v2drop:metric=cosine;min_keep=2", fv.V2Drop(metric="cosine", min_keep=2)),
        ("v2drop : metric = cosine ; min_keep = 2", fv.V2Drop(metric="cosine", min_keep=2)),
        ("v2drop:layers=3,17;keep=0.5,0", fv.V2Drop(layers=(3, 17), keep=(0.5, 0.0))),
        ("v2drop:layers=3;keep=0.5", fv.V2Drop(layers=(3,), keep=(0.5,))),
        ("v2drop:layers=3,17;keep=1/3,1/9", fv.V2Drop(layers=(3, 17), keep=(1 / 3, 1 / 9))),
        ("v2drop:layers=3,17;keep=33%,12.5 %", fv.V2Drop(layers=(3, 17), keep=(0.33, 0.125))),
        ("v2drop:retention=33%", fv.V2Drop(retention=0.33)),
        ("v2drop:reverse=true", fv.V2Drop(reverse=True)),
        ("visiondrop:image_token_list=((1,1),(1,0),(1,0))", fv.VisionDrop(image_token_list=((1, 1), (1, 0), (1, 0)))),
        ("v2drop/llava-1.5-7b/192", fv.preset("v2drop/llava-1.5-7b/192")),
        ("v2drop/llava-1.5-7b/64:metric=l1", replace(fv.preset("v2drop/llava-1.5-7b/64"), metric="l1")),
        ("v2drop+finalkv", fv.V2Drop() + fv.FinalKV()),
        ("visiondrop:retention=0.5 + v2drop:layers=3;keep=0.5+finalkv:first_layer=1",
         fv.VisionDrop(retention=0.5) + fv.V2Drop(layers=(3,), keep=(0.5,)) + fv.FinalKV(first_layer=1)),
        ('{"method": "v2drop", "layers": [3], "keep": [0.5]}', fv.V2Drop(layers=(3,), keep=(0.5,))),
    ],
)  # fmt: skip
def test_what_a_text_names(text, method):
    assert parse(text) == method
    assert str(parse(str(method))) == str(method)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "A method's name is missing"),
        ("v2drop+", "A method's name is missing"),
        ("v2drop:metric", "write key=value"),
        ("v2drop:metric=", "write key=value"),
        ("v2drop:metric=l1;metric=l2", "metric is given twice"),
        ("v2drop:bogus=1", "v2drop has no setting bogus. It has: keep, layers, metric"),
        ("v2drop:layers=1e999", r"layers\[0\] should be a valid integer; got \(inf,\)"),
        ("v2drop:reverse=maybe", "reverse should be a valid boolean; got 'maybe'"),
        ("v2drop:keep=" + "(" * 2000, "keep should be a valid tuple"),
        ("finalkv:inner=v2drop", "finalkv has no setting inner"),
        ("{", "Not valid JSON"),
        ('{"method": 1}', "The settings must name their method"),
        ('{"method": "v2drop", "bogus": 1}', "v2drop has no setting bogus. It has: keep, layers, metric"),
        ('{"method":' * 10_000, "Not valid JSON"),
    ],
)
def test_a_text_that_names_none_is_refused(text, message):
    with pytest.raises(fv.SettingError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["nope", "v2drop+nope", "nope:metric=l1", "v2drop/nope", '{"method": "nope"}'])
def test_an_unknown_name_is_refused_with_those_there_are(text):
    with pytest.raises(fv.UnknownNameError, match="nope"):
        parse(text)


@pytest.mark.parametrize("kind", fv.methods().values(), ids=fv.methods())
def test_every_method_is_named_by_its_name_and_by_its_json(kind):
    method = kind()
    assert parse(kind.name) == method
    assert parse(json.dumps(method.to_dict())) == registry.from_dict(method.to_dict()) == method


DEEP = {"method": "v2drop"}
for _ in range(2000):
    DEEP = {"method": "chain", "members": [DEEP, {"method": "finalkv"}]}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"method": "v2drop", "keep": 3}, {"method": "finalkv"}], r"^V2Drop: keep should be a tuple, .*; got 3"),
        ([{"keep": 3}, {"method": "finalkv"}], "must name their method"),
        ([5, {"method": "finalkv"}], r"members\[0\] should be"),
        ({"method": "v2drop"}, "members should be a valid tuple"),
        ([DEEP], "nest too many methods"),
    ],
)
def test_members_that_are_none_are_refused_in_a_sentence(members, message):
    with pytest.raises(fv.SettingError, match=message):
        registry.from_dict({"method": "chain", "members": members})


@pytest.mark.parametrize("name", fv.presets())
def test_every_preset_is_named(name):
    assert parse(name) == fv.presets()[name].method


def test_a_chain_goes_round_as_json():
    chain = parse("visiondrop+v2drop:retention=0.3+finalkv")
    assert isinstance(chain, Chain)
    assert parse(json.dumps(chain.to_dict())) == registry.from_dict(json.loads(json.dumps(chain.to_dict()))) == chain
    names = [member["method"] for member in json.loads(json.dumps(chain.to_dict()))["members"]]
    assert names == ["visiondrop", "v2drop", "finalkv"]


@pytest.mark.parametrize(
    "text",
    [
        "a.json",
        " 'a.json' ",
        "v2drop+a.json",
        "a.json+v2drop",
        "a.json:keep=1",
        "/a/b.json",
        "./a.py",
        "v2drop+a.py:k=1",
    ],
)
def test_what_a_client_writes_is_no_file(text):
    with pytest.raises(SettingError, match="names a file, which is not read here"):
        refuse_files(text)
    refuse_files("visionzip+v2drop:metric=l1")
    refuse_files("v2drop/llava-1.5-7b/192")
    refuse_files('{"method": "v2drop", "keep": [0.5]}')
