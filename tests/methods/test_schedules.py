"""What presets and budgets spend, and where methods cut: counts in each layer worked out by hand, one line each."""

import pytest
from hypothesis import given, settings, strategies as st

import foveate as fv
from foveate.contract import Chain, Shape, follow
from foveate.plain import inventory
from tests.contract.test_cuts import Config, mean

AT = {"clse": (1, 11, 21), "clse/qwen": (1, 10, 19), "sparsevlm": (3, 7, 16), "visiondrop": (0, 8, 16, 24)}
"""Layers of the presets that share them."""


def at(name, *counts):
    return dict(zip(AT[name], counts, strict=True))


PRESETS = [
    ("clse/llava-1.5-7b/192", 576, at("clse", 330, 210, 62)),
    ("clse/llava-1.5-7b/64", 576, at("clse", 110, 70, 20)),
    ("clse/qwen2-vl-7b/33.4%", 1000, at("clse/qwen", 570, 360, 98)),
    ("clse/qwen2-vl-7b/33.4%", 100, at("clse/qwen", 56, 36, 9)),  # 100 · 0.57 is 56.99999999999999 in Python
    ("dart/llava-1.5-7b/192", 576, {2: 196}),
    ("dart/llava-next-7b/320", 2880, {2: 324}),
    ("dart/qwen2-vl-7b/33.3%", 1024, {2: 340}),
    ("dart/qwen2.5-vl-7b/11.1%", 1024, {2: 116}),
    ("fastv/llava-1.5-7b/192", 576, {2: 166}),
    ("fastv/llava-1.5-7b/64", 576, {2: 30}),
    ("hiprune/llava-1.5-7b/192", 576, {0: 192}),
    ("priortr/llava-1.5-7b/64", 576, {3: 64}),
    ("priortr/llava-next-7b/320", 2880, {3: 320}),
    ("priortr/qwen3-vl-8b/11.1%", 1000, {3: 111}),
    ("prumerge/llava-1.5-7b/128", 576, {0: 128}),
    ("prumerge_plus/llava-1.5-7b/64", 576, {0: 64}),
    ("pyramiddrop/llava-1.5-7b/paper", 576, {8: 288, 16: 144, 24: 72}),
    ("pyramiddrop/llava-1.5-7b/192", 576, {2: 322, 8: 180, 16: 101}),
    ("pyramiddrop/llava-1.5-7b/64", 576, {2: 110, 8: 21, 16: 4}),
    ("pyramiddrop/llava-onevision-7b/46.9%", 6272, {7: 3136, 14: 1568, 21: 784}),
    ("pyramiddrop/qwen2.5-vl-7b/46.9%", 1024, {7: 512, 14: 256, 21: 128}),
    ("sparsevlm/llava-1.5-7b/192", 576, at("sparsevlm", 309, 204, 113)),
    ("sparsevlm/llava-1.5-7b/64", 576, at("sparsevlm", 82, 32, 18)),
    ("sparsevlm_plus/llava-1.5-7b/192", 576, at("sparsevlm", 300, 200, 118)),
    ("sparsevlm_plus/llava-1.5-7b/64", 576, at("sparsevlm", 66, 34, 20)),
    ("tome/llava-1.5-7b/192", 576, {0: 192}),
    ("v2drop/llava-1.5-7b/192", 576, {3: 288, 17: 86, 22: 1}),
    ("v2drop/llava-1.5-7b/64", 576, {3: 28, 17: 1}),
    ("v2drop/llava-1.5-7b/repo", 576, {3: 288, 17: 144, 22: 1}),
    ("v2drop/qwen2-vl-7b/22.6%", 1024, {3: 256, 16: 12, 22: 1}),
    ("vidcom2/llava-1.5-7b/64", 576, {0: 64}),
    ("visiondrop/llava-1.5-7b/64", 576, at("visiondrop", 96, 70, 52, 38)),
    ("visiondrop/llava-1.5-7b/192", 576, at("visiondrop", 288, 211, 155, 114)),
    ("visiondrop/llava-next-7b/640", None, at("visiondrop", 960, 704, 517, 379)),
    ("visiondrop/video-llava-7b/256", None, at("visiondrop", 768, 194, 49, 12)),
    ("visionzip/llava-1.5-7b/192", 576, {0: 192}),
    ("vscan/llava-1.5-7b/64", 576, {0: 96, 16: 32}),
    ("vscan/llava-1.5-7b/192", 576, {0: 288, 16: 96}),
    ("vscan/qwen2.5-vl-7b/11.1%", 1296, {0: 216, 14: 71}),  # both truncated: 16.7 %, then 33.3 % of these
]


def steps(plan):
    """The layers from which on there is another number of tokens than before."""
    return {layer: left for layer, left in enumerate(plan) if not layer or left != plan[layer - 1]}


@pytest.mark.parametrize(("preset", "tokens", "left"), PRESETS)
def test_a_preset_spends_what_its_page_says(preset, tokens, left):
    stored = fv.presets()[preset]
    tokens = tokens or stored.vision_tokens
    assert steps(stored.method.plan(stored.depth, (tokens,))) == {0: tokens, **left}


def test_a_presets_line_says_what_its_plan_spends():
    for name, line in inventory.presets().items():
        plan = fv.preset(name).plan(line["depth"], (line.get("vision_tokens", 1000),))
        assert (plan and sum(plan) / len(plan)) == line.get("spends"), name


def test_a_chain_spends_what_its_name_says():
    """V2Drop keeps three tenths of 110 for five layers, then one; or half of 42 to the end."""
    chains = [preset for name, preset in fv.presets().items() if name.startswith("chain/")]
    plans = [preset.method.plan(32, (576,)) for preset in chains]
    for preset, plan in zip(chains, plans, strict=True):
        nominal = int(preset.name.split("/")[2].split("-")[0])
        assert nominal - 1 < sum(plan) / 32 < nominal + 0.5
        assert isinstance(preset.method, Chain)
    assert plans[0] == (110,) * 17 + (33,) * 5 + (1,) * 10
    assert plans[2] == (42,) * 17 + (21,) * 15


def test_presets_of_v2drop_average_the_share_that_their_names_say():
    for name, preset in fv.presets().items():
        if name.startswith("v2drop") and name.endswith("%"):
            tokens = preset.vision_tokens or 10_000
            share = mean(preset.method, preset.depth, tokens) / tokens
            assert share == pytest.approx(float(name.rsplit("/", 1)[1][:-1]) / 100, abs=2e-3), name


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (fv.CLSE(tokens=192), at("clse", 302, 192, 57)),
        (fv.CLSE(tokens=64), at("clse", 80, 51, 15)),
        (fv.PriorTR(tokens=64), {3: 11}),
        (fv.FastV(tokens=64), {2: 30}),
        (fv.PyramidDrop(tokens=64), {2: 110, 8: 21, 16: 4}),
        (fv.HiPrune(), {0: 192}),
        (fv.ToMe(), {0: 192}),
    ],
    ids=str,
)
def test_a_budget_by_hand(method, left):
    assert steps(method.plan(32, (576,))) == {0: 576, **left}


@pytest.mark.parametrize(
    ("method", "layers"),
    [
        (fv.CLSE(kv=False), {32: (1, 11, 21), 28: (1, 10, 19), 36: (1, 13, 24), 4: (1, 2, 3)}),
        (fv.PyramidDrop(), {32: (8, 16, 24), 28: (7, 14, 21), 36: (9, 18, 27), 6: (2, 3, 4), 4: (1, 2, 3)}),
        (fv.MustDrop(), {4: (1, 2, 3), 5: (1, 2, 3), 28: (3, 6, 10, 13), 32: (3, 7, 11, 15), 40: (3, 9, 13, 19)}),
        (fv.SparseVLM(retention=0.6), {32: (3, 7, 16), 28: (3, 6, 14), 6: (1, 2, 4)}),
        (fv.VisionDrop(tokens=64), {4: (1, 2, 3), 24: (6, 12, 18), 28: (7, 14, 21), 40: (10, 20, 30)}),
        (fv.V2Drop(), {32: (3, 17, 22), 28: (3, 16, 22), 4: (1, 2, 3)}),
    ],
    ids=str,
)
def test_where_a_method_cuts_follows_the_depth(method, layers):
    for depth, cuts in layers.items():
        assert follow.cut_layers(method.stages(Shape(depth))) == cuts


def test_a_decoder_that_is_too_shallow_for_three_cuts_is_refused():
    for method, least in ((fv.SparseVLM(), 6), (fv.PyramidDrop(), 4)):
        method.stages(Shape(least))
        with pytest.raises(fv.SettingError, match=f"{least} layers or more; got {least - 1}"):
            method.stages(Shape(least - 1))


LAYERED = [fv.V2Drop, fv.Random, fv.Uniform, fv.CLSE, fv.DART, fv.FastV, fv.PriorTR, fv.PyramidDrop, fv.SparseVLM]


@pytest.mark.parametrize("kind", [*LAYERED, fv.SparseVLMPlus])
@settings(max_examples=30)
@given(depth=st.integers(6, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(kind, depth, share, tokens):
    first = follow.cut_layers(kind(retention=0.5).stages(Shape(depth)))[0]
    floor = (first + (depth - first) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match=f"{kind.__name__} cannot average .* floor is") as refused:
            kind.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert refused.value.floor == pytest.approx(floor)
    else:
        method = kind.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        # Truncation loses up to a token a layer.
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=1)
