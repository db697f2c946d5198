import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Arriving, Attention, LayerView, Shape, follow
from foveate.methods.pyramiddrop import PyramidDrop
from tests.contract.test_scheduled import Config, mean

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


def test_it_reads_the_last_row_of_the_layer_to_come_and_renumbers():
    stages = PyramidDrop().stages(Shape(depth=32))
    assert [stage.layer for stage in stages] == [8, 16, 24]
    for stage in stages:
        assert stage.reads == (Attention(rows="last", layer="next", heads="mean", over="mean"),)
        assert (stage.positions, stage.unit) == ("reindex", "image")
    (stage,) = PyramidDrop(layer_list=(8,), image_token_ratio_list=(0.5,), positions="keep").stages(Shape(depth=32))
    assert stage.positions == "keep"


@pytest.mark.parametrize(
    ("depth", "layers"), [(32, (8, 16, 24)), (28, (7, 14, 21)), (36, (9, 18, 27)), (6, (2, 3, 4)), (4, (1, 2, 3))]
)
def test_default_layers_are_quarters_of_the_depth(depth, layers):
    for method in (PyramidDrop(), PyramidDrop(image_token_ratio_list=(0.4, 0.3, 0.2))):
        assert tuple(stage.layer for stage in method.stages(Shape(depth))) == layers


@pytest.mark.parametrize("method", [PyramidDrop(), PyramidDrop(retention=0.5)])
def test_a_decoder_too_shallow_for_three_cuts_is_refused(method):
    with pytest.raises(fv.SettingError, match="4 layers or more; got 3"):
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_list": (8,), "image_token_ratio_list": (0.5, 0.2)}, "must have the same length"),
        ({"image_token_ratio_list": (0.5, 0.25, 0.3)}, "none may grow"),
        ({"image_token_ratio_list": (0.5, 0.25, 0.1), "retention": 0.3}, "or a budget"),
        ({"tokens": 10, "retention": 0.3}, "one of tokens= and retention="),
        ({"layer_list": (8, 8, 9)}, "ascend strictly"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(fv.SettingError, match=message):
        PyramidDrop(**settings)


@pytest.mark.parametrize(
    ("preset", "counts", "tokens"),
    [
        ("paper", [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8, 270),
        ("192", [576] * 2 + [322] * 6 + [180] * 8 + [101] * 16, 191.875),
        ("192-late", [576] * 8 + [146] * 8 + [37] * 8 + [9] * 8, 192),
        ("128", [576] * 2 + [242] * 6 + [101] * 8 + [43] * 16, 128.125),
        ("64", [576] * 2 + [110] * 6 + [21] * 8 + [4] * 16, 63.875),
    ],
)
def test_presets_spend_what_the_page_says(preset, counts, tokens):
    plan = fv.presets()[f"pyramiddrop/llava-1.5-7b/{preset}"].method.plan(32, (576,))
    assert list(plan) == counts
    assert sum(plan) / 32 == tokens
    if preset.isdigit():
        assert PyramidDrop.for_budget(Config(32), tokens=int(preset)).plan(32, (576,)) == plan


@pytest.mark.parametrize(
    ("preset", "entered", "counts"),
    [
        ("llava-next-7b/paper", 2928, [2928] * 8 + [1464] * 8 + [732] * 8 + [366] * 8),
        ("llava-onevision-7b/46.9%", 6272, [6272] * 7 + [3136] * 7 + [1568] * 7 + [784] * 7),
        ("qwen2.5-vl-7b/46.9%", 1024, [1024] * 7 + [512] * 7 + [256] * 7 + [128] * 7),
    ],
)
def test_presets_of_other_models_have_the_papers_ratios_at_quarters_of_the_depth(preset, entered, counts):
    preset = fv.presets()[f"pyramiddrop/{preset}"]
    assert list(preset.method.plan(preset.depth, (entered,))) == counts
    assert sum(counts) / len(counts) / entered == pytest.approx(0.46875)


@given(depth=st.integers(4, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    first = max(1, round(depth / 16))
    floor = (first + (depth - first) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match="its floor is"):
            PyramidDrop.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = PyramidDrop.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=0.51)


def test_the_papers_layers_meet_no_budget_below_a_quarter():
    with pytest.raises(fv.BudgetError, match=r"before layer 8, so its floor is 25.13%, 144.8 tokens"):
        PyramidDrop.for_budget(Config(32), tokens=128, layer_list=(8, 16, 24))
