"""What the structure of two models does not say: newlines, and which tiles are one picture."""

import pytest
import torch

import foveate as fv
from foveate.families.derived import OVERRIDES
from foveate.registry import family_for
from tests.derived.test_derived import check_hidden, tiny
from tests.tiny_derived import known

pytestmark = pytest.mark.skipif(not known("hunyuan_vl"), reason="transformers is too old")
NEWLINES = [0, 4, 8, 9], [0, 3, 6, 9, 10]
"""Of grids of 2 x 3 and 3 x 2: the first token, one behind each row, and the last."""
BY_PLACE = (
    fv.VidCom2(keep=0.4),
    fv.AveragePool(keep=0.4),
    fv.CLSE(layers=(1, 2), keep=(0.6, 0.4)),
    fv.HiPrune(retention=0.4, positions="keep"),
    fv.DivPrune(keep=0.4, positions="keep"),
    fv.V2Drop(layers=(1, 3), keep=(0.6, 0.4)),
)
"""Methods that ask for grids, or that rank behind the projector and between layers."""


def test_each_override_serves_its_type():
    for name, kind in OVERRIDES.items():
        assert type(family_for(tiny(name)[0])) is kind


@pytest.mark.parametrize("method", BY_PLACE, ids=lambda method: method.name)
def test_newlines_of_hunyuan_stay_and_are_not_ranked(method):
    model, case = tiny("hunyuan_vl")
    inputs = case.batch(model, ["titit"])
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
    fixed = [*NEWLINES[0], *(10 + place for place in NEWLINES[1])]
    assert trace.stages
    for stage in trace.stages:
        kept = stage.kept[0].tolist()
        assert {*fixed} <= {*kept}
        assert len(fixed) < len(kept) < 21


@pytest.mark.parametrize("method", [fv.VidCom2(keep=0.4), fv.DivPrune(keep=0.4, positions="keep")])
def test_what_is_left_beside_newlines_is_as_hidden_columns(method):
    model, case = tiny("hunyuan_vl")
    check_hidden(model, case.batch(model, ["titit"]), method)


def test_where_tokens_of_hunyuan_look_is_known():
    model, case = tiny("hunyuan_vl")
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**case.batch(model, ["titit"]))
    boxes = trace.latest.boxes[0]
    assert [box.isnan().any(dim=1).nonzero()[:, 0].tolist() for box in boxes] == [*NEWLINES]
    assert torch.equal(boxes[0][3], torch.tensor([2 / 3, 0, 1, 0.5]))  # the last of its first row


def test_the_view_and_the_tiles_of_ovis_are_one_picture():
    model, case = tiny("ovis2")
    inputs = case.batch(model, ["titit"])
    with fv.drop(model, fv.VidCom2(keep=0.25)) as trace, torch.no_grad():
        model(**inputs)
    assert [media.length for media in trace.latest.media[0]] == [48, 16]
    assert family_for(model).image_lengths(inputs["input_ids"] == 91, inputs["input_ids"]) == [[48, 16]]
