import foveate as fv
from foveate.contract import Shape
from foveate.methods.sparsevlm_plus import SparseVLMPlus

EXAMPLES = [
    SparseVLMPlus(pruning_layers=(1, 3), targets=(12, 5), reference=25),
    SparseVLMPlus(pruning_layers=(2,), targets=(9,), reference=25, positions="reindex"),
    SparseVLMPlus(pruning_layers=(1, 2, 3), retention=0.6),
]
SMALLEST = SparseVLMPlus(pruning_layers=(1, 2), targets=(2, 0), reference=25)


def test_the_published_settings_ask_fourteen_heads_and_others_half():
    presets = [preset for name, preset in fv.presets().items() if name.startswith("sparsevlm_plus/llava-1.5")]
    assert len(presets) == 4
    for preset in presets:
        assert {stage.reads[0].busiest for stage in preset.method.stages(Shape(32))} == {14}
    (stage,) = SparseVLMPlus(pruning_layers=(1,), targets=(9,), heads=3).stages(Shape(32))
    assert stage.reads[0].busiest == 3
    assert SparseVLMPlus().stages(Shape(32))[0].reads[0].busiest is None  # half
