import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, LayerView, Shape, follow
from foveate.methods.pyramiddrop import PyramidDrop
from tests.contract.test_scheduled import Config

EXAMPLES = [
    PyramidDrop(layer_list=(1, 3, 4), image_token_ratio_list=(0.6, 0.3, 0.1)),
    PyramidDrop(layer_list=(2,), image_token_ratio_list=(0.4,), positions="keep", scope="sample"),
    PyramidDrop(retention=0.5),
]
SMALLEST = PyramidDrop(layer_list=(1, 3), image_token_ratio_list=(0.3, 0.0))


def run(method, rows, depth=32):
    """The tokens that each cut of a method leaves, as each layer's last row pays attention: {layer: (tokens,)}."""
    entered = len(next(iter(rows.values())))
    tokens, left = torch.arange(entered), []
    for stage in follow.in_order(method.stages(Shape(depth))):
        arriving = Arriving(len(tokens), entered, entered)
        cut = stage.cut(LayerView(attention=torch.tensor(rows[stage.layer])[tokens], arriving=arriving))
        if cut is not None:
            tokens = tokens[cut.source]
        left.append(tokens.tolist())
    return left


def test_eight_tokens_through_three_cuts_by_hand():
    """Each cut leaves a share of the eight that entered, ranked anew: 4, 2 and 1 in raster order."""
    rows = {
        8: [0.01, 0.20, 0.05, 0.10, 0.02, 0.11, 0.03, 0.30],  # 7, 1, 5, 3 have most
        16: [0.90, 0.10, 0.90, 0.30, 0.90, 0.20, 0.90, 0.05],  # of these 3, 5
        24: [0.00, 0.50, 0.00, 0.10, 0.00, 0.40, 0.00, 0.60],  # of these 5
    }
    assert run(PyramidDrop(), rows) == [[1, 3, 5, 7], [3, 5], [5]]


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


def test_ties_go_to_the_lower_index():
    method = PyramidDrop(layer_list=(1,), image_token_ratio_list=(0.5,))
    assert run(method, {1: [0.2, 0.1, 0.2, 0.2]}) == [[0, 2]]


def test_the_papers_layers_meet_no_budget_below_a_quarter():
    with pytest.raises(fv.BudgetError, match=r"25\.13%"):
        PyramidDrop.for_budget(Config(32), tokens=128, vision_tokens=576, layer_list=(8, 16, 24))
