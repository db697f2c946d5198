import torch

import foveate as fv
from foveate.contract import LayerView
from foveate.methods.divprune import DivPrune
from tests.methods import stage_of, stays
from tests.models import IMAGE, batch, tiny

EXAMPLES = [DivPrune(keep=0.4), DivPrune(tokens=3, positions="keep", scope="frame")]
SMALLEST = DivPrune(keep=0.001)


def kept(rows, **settings):
    return stays(stage_of(DivPrune(**settings)), LayerView(hidden=rows))


def test_of_equal_tokens_one_stays_until_nothing_else_is_left():
    newline = torch.full((1, 8), 0.3)
    patches = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    rows = torch.cat((patches[:3], newline, patches[3:], newline, newline))
    assert len(set(kept(rows, tokens=7)) & {3, 7, 8}) == 1
    assert len(set(kept(rows, tokens=8)) & {3, 7, 8}) == 2
    assert kept(torch.ones(7, 4), tokens=3) == [0, 1, 2]
    assert kept(torch.zeros(7, 4), tokens=3) == [0, 1, 2]  # no direction at all


def test_of_two_that_are_equally_far_the_first_is_taken():
    """The farthest two are each other's nearest, so they tie; no rounding may decide between them."""
    for seed in range(30):
        rows = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed))
        assert kept(rows, tokens=1) == [0]


def test_near_tokens_of_half_precision_are_told_apart():
    # 1 − cos is some 3e-7, 2e-6 and 8e-6 here: in float16, whose steps below 1 are 5e-4, all three are 0.
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0008], [1.0, 0.002], [1.0, 0.004]]).half()
    rows = torch.cat((rows, torch.tensor([[-1.0, 0.0]]).half()))
    assert kept(rows, tokens=2) == [0, 4]
    assert kept(rows, tokens=3) == [0, 3, 4]
    assert kept(rows, tokens=4) == [0, 2, 3, 4]


def test_it_is_the_set_of_a_models_own_features_newlines_among_them():
    model, inputs = tiny("llava_next"), batch("llava_next", ["tit"])
    with torch.no_grad():
        images = model.model.get_image_features(
            pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
        ).pooler_output
        with fv.drop(model, DivPrune(keep=0.4)) as trace:
            model(**inputs)
    (features,) = images
    vision = int((inputs["input_ids"] == IMAGE).sum())
    assert len(features) == vision
    (stage,) = trace.stages
    assert (stage.where, stage.layer, stage.before, stage.after) == ("layer", 0, (vision,), (round(0.4 * vision),))
    assert stage.origin[0].tolist() == kept(features, keep=0.4)
    newlines = (features == model.model.image_newline).all(dim=-1).nonzero()[:, 0].tolist()
    assert len(newlines) > 2
    assert len(set(newlines) & set(stage.origin[0].tolist())) == 1
