import pytest

import foveate as fv
from foveate.contract import Shape
from foveate.methods.pyramiddrop import PyramidDrop
from tests.contract.test_cuts import Config

EXAMPLES = [
    PyramidDrop(layer_list=(1, 3, 4), image_token_ratio_list=(0.6, 0.3, 0.1)),
    PyramidDrop(layer_list=(2,), image_token_ratio_list=(0.4,), positions="keep", scope="sample"),
    PyramidDrop(retention=0.5),
]
SMALLEST = PyramidDrop(layer_list=(1, 3), image_token_ratio_list=(0.3, 0.0))


@pytest.mark.parametrize("method", [PyramidDrop(), PyramidDrop(retention=0.5)])
def test_a_decoder_too_shallow_for_three_cuts_is_refused(method):
    with pytest.raises(fv.SettingError, match="got 3"):
        method.stages(Shape(depth=3))


def test_counts_are_truncated_shares_of_what_entered_and_never_nothing():
    method = PyramidDrop(layer_list=(4, 10, 20), image_token_ratio_list=(0.4, 0.15, 0.05))
    assert method.plan(24, (576,)) == (576,) * 4 + (230,) * 6 + (86,) * 10 + (28,) * 4
    assert method.plan(24, (7,)) == (7,) * 4 + (2,) * 6 + (1,) * 14
    assert method.plan(24, (1,)) == (1,) * 24


def test_several_images_keep_their_share_each():
    method = PyramidDrop(layer_list=(1,), image_token_ratio_list=(0.5,))
    assert method.plan(2, (7, 9)) == (16, 3 + 4)


def test_the_papers_layers_meet_no_budget_below_a_quarter():
    with pytest.raises(fv.BudgetError, match=r"25\.13%"):
        PyramidDrop.for_budget(Config(32), tokens=128, vision_tokens=576, layer_list=(8, 16, 24))
