import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, LayerView, Shape
from foveate.methods.sparsevlm_plus import SparseVLMPlus

EXAMPLES = [
    SparseVLMPlus(pruning_layers=(1, 3), targets=(12, 5), reference=25),
    SparseVLMPlus(pruning_layers=(2,), targets=(9,), reference=25, positions="reindex"),
    SparseVLMPlus(pruning_layers=(1, 2, 3), retention=0.6),
]
SMALLEST = SparseVLMPlus(pruning_layers=(1, 2), targets=(2, 0), reference=25)


def cut_of(method, scores, **view):
    (stage,) = method.stages(Shape(depth=32))
    arriving, signals = Arriving.all_of(len(scores)), {stage.reads[0]: torch.tensor(scores)}
    return stage.cut(LayerView(count=len(scores), arriving=arriving, signals=signals, **view))


# -- worked out token by token on a tiny LLaVA ------------------------------------------------------------------------


def test_the_published_settings_ask_fourteen_heads_and_others_half():
    presets = [preset for name, preset in fv.presets().items() if name.startswith("sparsevlm_plus/llava-1.5")]
    assert len(presets) == 4
    for preset in presets:
        assert {stage.reads[0].busiest for stage in preset.method.stages(Shape(32))} == {14}
    (stage,) = SparseVLMPlus(pruning_layers=(1,), targets=(9,), heads=3).stages(Shape(32))
    assert stage.reads[0].busiest == 3
    assert SparseVLMPlus().stages(Shape(32))[0].reads[0].busiest is None  # half


# -- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [3, 2, 1])
def test_all_stay_where_no_more_arrive_than_the_target(tokens):
    method = SparseVLMPlus(pruning_layers=(2,), targets=(3,), reference=tokens)
    assert cut_of(method, [0.1] * tokens) is None
    assert method.plan(32, (tokens,)) == (tokens,) * 32


def test_targets_are_scaled_for_images_of_another_size():
    method = SparseVLMPlus(pruning_layers=(0,), targets=(300,))
    assert method.plan(2, (1152, 576)) == (1728, 900)
    assert method.plan(2, (7,)) == (7, 4)
    assert method.plan(2, (1,)) == (1, 1)
    assert SparseVLMPlus(pruning_layers=(0,), targets=(0,)).plan(2, (576, 7)) == (583, 0)


def test_without_text_behind_tokens_at_even_steps_stay():
    method = SparseVLMPlus(pruning_layers=(2,), targets=(3,), reference=9)
    assert cut_of(method, [0.0] * 9, text_behind=False).source.tolist() == [1, 4, 7]
