"""Invariant 8, for methods that merge films: what the authors' own functions keep and merge, vector by vector."""

import pytest
import torch

from foveate.contract import LayerView, Shape
from foveate.methods.dtd import DTD
from foveate.methods.fastv import FastV
from foveate.methods.fastvid import FastVID
from foveate.methods.flashvid import FlashVID
from foveate.methods.holitom import HoliTom
from tests.golden import cases

ROWS = 1e-4


def named(*methods):
    films = [case for method in methods for case in cases(method) if "features" in case.tensors]
    return pytest.mark.parametrize("case", films, ids=lambda case: case.name)


def film(case):
    return case.tensors["features"].float(), case.tensors["attention"]


@named("dtd")
def test_dtd(case):
    facts, features = case.facts["settings"], case.tensors["features"].float()
    setting = {"threshold" if facts["absolute"] else "share": facts["threshold"]}
    method = DTD(**setting)
    chosen = method.select(features, method.own_count((features.shape[1],) * len(features)))
    if not isinstance(chosen, torch.Tensor):
        chosen = chosen.source[: int(chosen.count)]
    assert chosen.tolist() == case.tensors["kept"].tolist()


@named("holitom")
def test_holitom(case):
    facts = case.facts["settings"]
    cut = HoliTom(keep=facts["retention"], tau=facts["tau"]).merge(*film(case), None)
    assert cut.source.tolist() == case.tensors["origin"].tolist()
    torch.testing.assert_close(cut.rows, case.tensors["rows"], atol=ROWS, rtol=0)


def test_what_holitom_merges_inside_the_decoder():
    (case,) = (case for case in cases("holitom") if "hidden" in case.tensors)
    tensors, start, count = case.tensors, case.facts["settings"]["image_start"], case.facts["settings"]["image_tokens"]
    (stage,) = FastV(layers=(18,), join=True).stages(Shape(28))
    image = slice(start, start + count)
    cut = stage.cut(LayerView(tensors["hidden"].float()[image], attention=tensors["attention_last_row"][image]))
    of_image = (tensors["kept"] >= start) & (tensors["kept"] < start + count)
    assert (cut.source + start).tolist() == tensors["kept"][of_image].tolist()
    torch.testing.assert_close(cut.rows, tensors["rows"][of_image], atol=ROWS, rtol=0)


@named("fastvid", "fastvid_qwen2_5_vl")
def test_fastvid(case):
    facts, rule = case.facts["settings"], "qwen" if "qwen" in case.name else "onevision"
    method = FastVID(keep=facts["retention"], tau=facts["tau"], rule=rule)
    cut = method.merge(*film(case), None, case.tensors["global_features"].float())
    source, order = cut.source.sort()
    assert source.tolist() == case.tensors["kept"].tolist()
    torch.testing.assert_close(cut.rows[order], case.tensors["rows"], atol=ROWS, rtol=0)


@named("flashvid")
def test_flashvid(case):
    """As the code runs: a position may come twice, and its two rows in either order."""
    facts = case.facts["settings"]
    form = "events" if facts["selection"] == "attn_div_v2" else "attention"
    cut = FlashVID(keep=facts["retention"], form=form, trees="released").merge(*film(case), None)
    assert sorted(cut.source.tolist()) == case.tensors["kept"].tolist()
    theirs = {}
    for token, row in zip(case.tensors["kept"].tolist(), case.tensors["rows"], strict=True):
        theirs.setdefault(token, []).append(row)
    for token, row in zip(cut.source.tolist(), cut.rows, strict=True):
        assert min((row - other).abs().max() for other in theirs[token]) < ROWS
