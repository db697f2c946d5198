"""Invariant 8, for HAWK: the scores of the released code's layer 0, and what it keeps inside a model."""

import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, LayerView, Shape
from foveate.methods.hawk import HAWK
from tests.golden import TOLERANCE, Case, cases, every_case

ALONE = [case for case in cases("hawk") if "hidden" in case.tensors]


def products(case: Case) -> torch.Tensor:
    """What the asking rows' mean query meets, of a layer's weights: (vision tokens, heads)."""
    facts, tensors = case.facts["settings"], {name: value.float() for name, value in case.tensors.items()}
    rows = torch.nn.functional.rms_norm(tensors["hidden"], (64,), tensors["norm_weight"], facts["norm_eps"])
    by_name = {}
    for part in ("q", "k"):
        bias = tensors.get(f"{part}_bias")
        by_name[part] = torch.nn.functional.linear(rows, tensors[f"{part}_weight"], bias).unflatten(
            1, (-1, facts["head_size"])
        )
    ids = case.tensors["input_ids"]
    is_vision = (ids == facts["image_token"]) | (ids == facts["video_token"])
    asking = by_name["q"][case.tensors["asking_columns"].long()].mean(dim=0)  # (heads, size)
    keys = by_name["k"][is_vision].repeat_interleave(facts["heads"] // facts["key_heads"], dim=1)
    return (keys * asking).sum(dim=-1) / facts["head_size"] ** 0.5


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_the_picks_are_the_codes(case):
    ratio, weights = case.facts["settings"]["keep_ratio"], tuple(case.tensors["head_weights"].tolist())
    (stage,) = HAWK(keep=ratio, weights=weights, rounding="up", scope="sample").stages(Shape(28))
    values = products(case)
    cut = stage.cut(LayerView(signals={stage.reads[0]: values}, arriving=Arriving.all_of(len(values))))
    assert cut.source.tolist() == case.tensors["kept"].tolist()


@every_case("hawk")
def test_inside_a_model(case, attention):
    if "hidden" in case.tensors:
        return
    facts, tensors = case.facts["settings"], case.tensors
    weights, leave_out = tuple(tensors["head_weights"].tolist()), tuple(facts["leave_out"])
    method = HAWK(keep=facts["keep_ratio"], weights=weights, leave_out=leave_out, rounding="up", scope="sample")
    with case.attending(attention) as model, fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**case.inputs).logits[0, -1]
    assert trace.stages[0].kept[0].tolist() == tensors["kept"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)


def test_the_preset_has_the_codes_weights():
    (case,) = [case for case in ALONE if len(case.tensors["head_weights"]) == 28]
    stored = torch.tensor(fv.preset("hawk/qwen2.5-vl-7b/20%").weights)
    torch.testing.assert_close(stored, case.tensors["head_weights"], atol=1e-8, rtol=1e-6)
