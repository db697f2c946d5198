import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Arriving, Hidden, LayerView, Shape, follow
from foveate.methods.v2drop import V2Drop, variation

LAYERS = (1, 3, 4)
EXAMPLES = [
    V2Drop(layers=LAYERS, keep=(0.6, 0.5, 0.3)),
    V2Drop(layers=(2, 4), keep=(0.5, 0.4), metric="cosine", window=2, scope="image"),
    V2Drop(layers=LAYERS, keep=(0.7, 0.5, 0.0), over="path", min_keep=0),
]
KEEP_ALL = V2Drop(layers=LAYERS, keep=(1.0, 1.0, 1.0))
SMALLEST = V2Drop(layers=LAYERS, keep=(0.3, 0.3, 0.0))


def select(method, hidden, before, count):
    (stage,) = replace(method, layers=(3,), keep=(count / len(hidden) + 1e-9,)).stages(Shape(depth=32))
    return stage.cut(LayerView(hidden=hidden, hidden_before=before)).source.tolist()


def test_keeps_the_tokens_that_moved():
    still = torch.zeros(4, 8)
    moved = still.clone()
    moved[[1, 3]] += 1.0
    assert select(V2Drop(), moved, still, 2) == [1, 3]


def test_a_stream_made_by_hand_keeps_its_upper_half():
    before = torch.zeros(8, 4)
    hidden = torch.arange(8.0)[:, None] * torch.eye(4)[0]
    assert select(V2Drop(), hidden, before, 4) == [4, 5, 6, 7]


def test_equal_scores_go_to_the_lowest_indices():
    assert select(V2Drop(), torch.ones(6, 4), torch.zeros(6, 4), 3) == [0, 1, 2]


def test_metrics_by_hand():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    now = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert variation(now, before).tolist() == pytest.approx([5.0, 5.0**0.5])
    assert variation(now, before, "l1").tolist() == pytest.approx([7.0, 3.0])
    assert variation(now, before, "cosine").tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert variation(now, before, "relative").tolist() == pytest.approx([1.0, 5.0**0.5])


def test_relative_survives_a_zero_start():
    assert torch.isfinite(variation(torch.ones(2, 3), torch.zeros(2, 3), "relative")).all()


def test_scores_are_float32_in_half_precision_unless_asked_otherwise():
    before = torch.zeros(3, 1, dtype=torch.bfloat16)
    now = torch.tensor([[50.0], [50.25], [49.75]], dtype=torch.bfloat16)
    assert variation(now, before).dtype == torch.float32
    assert variation(now, before, dtype=torch.bfloat16).dtype == torch.bfloat16
    # 256 units and one more: a tie once the norm is rounded to bfloat16's eight bits, no tie in float32.
    wide = torch.full((2, 256), 16.0, dtype=torch.bfloat16)
    wide[1, 0] = 16.5
    zero = torch.zeros_like(wide)
    assert select(V2Drop(), wide, zero, 1) == [1]
    assert select(V2Drop(score_dtype="model"), wide, zero, 1) == [0]


def test_shapes_that_differ_are_refused():
    with pytest.raises(fv.ShapeError, match="hidden is"):
        variation(torch.zeros(3, 2), torch.zeros(2, 2))


@given(
    tokens=st.integers(1, 64), seed=st.integers(0, 2**16), metric=st.sampled_from(["l2", "l1", "cosine", "relative"])
)
def test_scores_follow_their_tokens_when_tokens_are_reordered(tokens, seed, metric):
    rng = torch.Generator().manual_seed(seed)
    now, before = torch.randn(2, tokens, 16, generator=rng)
    order = torch.randperm(tokens, generator=rng)
    torch.testing.assert_close(variation(now, before, metric)[order], variation(now[order], before[order], metric))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (0,), "keep": (0.5,)}, "start at 1 for this method; got 0"),
        ({"layers": (3, 3), "keep": (0.5, 0.5)}, "ascend strictly"),
        ({"layers": (3,), "keep": (0.5, 0.5)}, "the same length"),
        ({"layers": (3,), "keep": (1.5,)}, r"keep\[0\] should be less than or equal to 1"),
        ({"metric": "linf"}, "metric should be"),
        ({"window": 0}, "window should be greater than or equal to 1"),
        ({"window": 4, "layers": (3,), "keep": (0.5,)}, "window=4 needs 4 layers before the first cut"),
        ({"over": "path", "window": 2}, "needs over='net'"),
        ({"over": "sum"}, "over should be"),
        ({"score_dtype": "fp8"}, "score_dtype should be"),
        ({"scope": "batch"}, "scope should be"),
        ({"min_keep": -1}, "min_keep should be greater than or equal to 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(fv.SettingError, match=message):
        V2Drop(**settings)


@pytest.mark.parametrize("method", EXAMPLES, ids=str)
def test_a_setting_survives_json(method):
    assert V2Drop.from_dict(json.loads(json.dumps(method.to_dict()))) == method
    assert hash(V2Drop.from_dict(json.loads(json.dumps(method.to_dict())))) == hash(method)


def test_a_dictionary_of_another_method_or_with_unknown_settings_is_refused():
    with pytest.raises(fv.SettingError, match="belong to 'random'"):
        V2Drop.from_dict(fv.Random().to_dict())
    with pytest.raises(fv.SettingError, match="no setting lazyness"):
        V2Drop.from_dict({"lazyness": 1})


@pytest.mark.parametrize(
    ("preset", "tokens", "counts", "mean"),
    [
        ("llava-1.5-7b/192", 576, [576] * 3 + [288] * 14 + [86] * 5 + [1] * 10, 193.75),
        ("llava-1.5-7b/128", 576, [576] * 3 + [161] * 14 + [40] * 5 + [1] * 10, 131.0),
        ("llava-1.5-7b/64", 576, [576] * 3 + [28] * 14 + [1] * 15, 66.71875),
        ("llava-1.5-7b/repo", 576, [576] * 3 + [288] * 14 + [144] * 5 + [1] * 10, 202.8125),
        ("qwen2-vl-7b/22.6%", 1024, [1024] * 3 + [256] * 13 + [12] * 6 + [1] * 6, 231.357),
    ],
)
def test_the_arithmetic_of_the_published_schedules(preset, tokens, counts, mean):
    found = fv.presets()[f"v2drop/{preset}"]
    plan = found.method.plan(found.depth, (tokens,))
    assert list(plan) == counts
    assert sum(plan) / len(plan) == pytest.approx(mean, abs=5e-4)


def test_every_preset_spends_what_its_name_says():
    for preset in fv.presets().values():
        budget = preset.name.rsplit("/", 1)[1]
        if preset.name.startswith("v2drop") and budget.endswith("%"):
            tokens = preset.vision_tokens or 10_000
            plan = preset.method.plan(preset.depth, (tokens,))
            assert sum(plan) / len(plan) / tokens == pytest.approx(float(budget[:-1]) / 100, abs=2e-3), preset.name


def test_an_unknown_preset_names_the_near_ones():
    with pytest.raises(fv.UnknownNameError, match=r"v2drop/llava-1\.5-7b/192"):
        fv.preset("v2drop/llava-1.5-7b/193")


def run(method, streams):
    """Walk a method's stages by hand over one sample's streams (layers, tokens, width): which ordinals are left."""
    depth, entered, _ = streams.shape
    tokens = torch.arange(entered)
    notes: dict[str, torch.Tensor] = {}
    for stage in follow.in_order(method.stages(Shape(depth))):
        (back,) = [signal.back for signal in stage.reads if isinstance(signal, Hidden)] or [0]
        view = LayerView(
            hidden=streams[stage.layer][tokens],
            hidden_before=streams[stage.layer - back][tokens],
            tokens=tokens,
            arriving=Arriving(len(tokens), entered, entered),
            notes=notes,
        )
        cut = stage.cut(view)
        if cut is not None:
            tokens = tokens[cut.source]
            notes = {name: note[cut.source] for name, note in notes.items()} | dict(cut.notes)
    return tokens.tolist()


def test_window_and_path_by_hand():
    # Token 0 moves out and back; token 1 moves little, but stays; token 2 moves late.
    position = torch.tensor([[0.0, 0, 0], [5, 1, 0], [0, 2, 0], [0, 2, 3]])  # (layers, tokens)
    streams = position[:, :, None] * torch.ones(2) / 2**0.5
    settings = {"layers": (3,), "keep": (0.34,)}
    assert run(V2Drop(**settings), streams) == [2]  # moves 0, 0, 3 through the last layer
    assert run(V2Drop(**settings, over="path"), streams) == [0]  # 10, 2, 3 in all
    assert run(V2Drop(**settings, window=3), streams) == [2]  # net 0, 2, 3
    assert run(V2Drop(layers=(2,), keep=(0.34,), window=2), streams) == [1]  # net 0, 2, 0


def test_a_path_starts_anew_at_every_cut():
    position = torch.tensor([[0.0, 0, 0], [9, 1, 8], [9, 1, 8], [9, 3, 8], [9, 3, 9]])
    streams = position[:, :, None] * torch.ones(1)
    # The cut before layer 2 drops token 1, which moved least; from there on token 2 moves more than token 0.
    assert run(V2Drop(layers=(2, 4), keep=(0.67, 0.5), over="path"), streams) == [2]


def test_window_one_is_the_default_bit_for_bit():
    streams = torch.randn(6, 40, 8, generator=torch.Generator().manual_seed(0))
    for settings in ({"layers": (2, 3, 5), "keep": (0.8, 0.7, 0.5)}, {"layers": (1,), "keep": (0.3,)}):
        assert run(V2Drop(**settings, window=1), streams) == run(V2Drop(**settings), streams)
        single = {"layers": settings["layers"][:1], "keep": settings["keep"][:1]}
        if single["layers"] == (1,):  # a path of one step
            assert run(V2Drop(**single, over="path"), streams) == run(V2Drop(**single), streams)


def held(method, tokens):
    return follow.held_rows(method.stages(Shape(depth=len(tokens))), tokens)


def test_what_is_remembered_while_each_layer_runs():
    tokens = (9, 9, 9, 6, 6, 2)
    assert held(V2Drop(layers=(3, 5), keep=(0.5, 0.5)), tokens) == (0, 0, 9, 0, 6, 0)
    assert held(V2Drop(layers=(3, 5), keep=(0.5, 0.5), window=3), tokens) == (9, 9, 18, 6, 6, 0)
    path = V2Drop(layers=(3, 5), keep=(0.5, 0.5), over="path")
    assert held(path, tokens) == held(path + fv.FinalKV(), tokens) == (9, 9, 9, 6, 6, 0)
    assert held(fv.Random(layers=(3, 5), keep=(0.5, 0.5)), tokens) == (0,) * 6
