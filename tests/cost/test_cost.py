"""`foveate.cost` by hand, by property, and against what the engine really runs."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, LlavaConfig, LlavaOnevisionConfig

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.registry import family_for
from tests import models
from tests.cost.test_measured import of_layers
from tests.models import FAMILIES, TINY, batch, cached, given as pictures_of, tiny

LLAVA_7B = LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}, dtype="float16")
PAPER = fv.preset("v2drop/llava-1.5-7b/192")
SHORT = LlavaConfig(
    text_config={"model_type": "qwen2", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 6,
                 "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 131,
                 "bos_token_id": 0, "eos_token_id": 1},
)  # fmt: skip


def cost(config=SHORT, **given):
    return fv.cost(config, **{"text_tokens": 11, "vision_tokens": 576, "tower_images": 1, **given})


# By hand.


def test_the_paper_setting_on_llava_7b_by_hand():
    costs = fv.cost(LLAVA_7B, text_tokens=40, vision_tokens=576, method=PAPER)
    assert costs.tokens == (576,) * 3 + (288,) * 14 + (86,) * 5 + (1,) * 10
    rows = [40 + n for n in costs.tokens]
    assert list(costs.layer_flops) == [n * (8 * 4096**2 + 6 * 4096 * 11008) + 4 * n * n * 4096 for n in rows]
    assert costs.kv_lengths == tuple(rows)
    assert costs.kv_bytes == sum(rows) * 2 * 4096 * 2
    assert costs.retention == 193.75 / 576
    assert costs.head_flops == 2 * 4096 * 32064
    a_row = 8 * 4096**2 + 6 * 4096 * 11008
    assert costs.decode_flops == sum(a_row + 4 * (n + 1) * 4096 for n in rows) + costs.head_flops


def test_where_tokens_leave_by_hand():
    costs = fv.cost(LLAVA_7B, text_tokens=40, vision_tokens=576, method=PAPER)
    assert costs.leaving == (
        ("before decoder layer 3", 576, 288),
        ("before decoder layer 17", 288, 86),
        ("before decoder layer 22", 86, 1),
    )
    assert "86 → 1" in costs._repr_html_()
    assert fv.cost(LLAVA_7B, text_tokens=40, vision_tokens=576).leaving == ()
    shorter = cost(method=fv.Chain(members=(fv.DivPrune(keep=0.5), fv.FinalKV())))
    assert shorter.leaving == (("before the decoder's first layer", 576, 288),)
    cached = cost(method=fv.Chain(members=(fv.V2Drop(layers=(3,), keep=(0.5,)), fv.FinalKV())))
    assert cached.leaving[1][0] == "from the caches, after the prefill"
    assert cached.leaving[1][1:] == (3 * 576 + 3 * 288, 2 * 576 + 4 * 288)  # FinalKV leaves the caches of the first two


def test_several_images_are_given_one_by_one():
    one, two = (cost(vision_tokens=tokens, tower_images=None) for tokens in (576, [576, 576]))
    assert two.tower_flops == 2 * one.tower_flops
    assert two.projector_flops == 2 * one.projector_flops
    each = fv.V2Drop(layers=(2,), keep=(0.001,), scope="image")
    assert cost(vision_tokens=[576, 576], method=each, tower_images=None).tokens[-1] == 2
    assert cost(vision_tokens=1152, method=each, tower_images=None).tokens[-1] == 1


def test_a_prompt_without_vision_tokens_costs_no_tower():
    costs = cost(vision_tokens=[], method=fv.V2Drop(layers=(2,), keep=(0.5,)), tower_images=None)
    assert (costs.tower_flops, costs.projector_flops, costs.retention) == (0, 0, 1.0)
    assert costs == replace(cost(vision_tokens=0, tower_images=None), vision_tokens=())


def test_the_cache_dtype_is_the_configs_or_the_one_given():
    half, single = cost(dtype=torch.bfloat16).kv_bytes, cost(dtype=torch.float32).kv_bytes
    assert cost().kv_bytes == half == single // 2
    config = LlavaConfig.from_dict({**SHORT.to_dict(), "dtype": "float32"})
    assert cost(config).kv_bytes == single


# Properties.

COUNTS = st.integers(0, 2000)
SCHEDULES = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(
    lambda keep: fv.V2Drop(layers=(1, 3, 4), keep=tuple(keep))
)
FIGURES = ("prefill_flops", "decode_flops", "kv_bytes", "total_flops")


@given(text=COUNTS, vision=COUNTS, method=st.none() | SCHEDULES)
def test_one_token_more_never_costs_less(text, vision, method):
    before = cost(text_tokens=text + 1, vision_tokens=vision, method=method)
    for more in ({"text_tokens": text + 2}, {"vision_tokens": vision + 1}):
        after = cost(**{"text_tokens": text + 1, "vision_tokens": vision, "method": method, **more})
        assert all(getattr(before, name) <= getattr(after, name) for name in FIGURES)


@given(
    vision=COUNTS,
    metric=st.sampled_from(["l2", "l1", "cosine", "relative"]),
    scope=st.sampled_from(["sample", "image"]),
)
def test_keeping_everything_costs_what_the_untouched_model_does(vision, metric, scope):
    method = fv.V2Drop(layers=(1, 3), keep=(1.0, 1.0), metric=metric, scope=scope)
    assert cost(vision_tokens=vision, method=method) == cost(vision_tokens=vision)


@given(vision=COUNTS, method=SCHEDULES)
def test_causal_attention_is_half_of_the_attention_part_alone(vision, method):
    full, causal = (cost(vision_tokens=vision, method=method, attention=how) for how in ("full", "causal"))
    for layer, half, rows in zip(full.layer_flops, causal.layer_flops, full.kv_lengths, strict=True):
        assert layer - half == 2 * rows * rows * 48
    assert replace(causal, layer_flops=full.layer_flops, attention="full") == full


@given(vision=COUNTS, method=SCHEDULES)
def test_layers_add_up_and_dropping_never_costs_more(vision, method):
    less, whole = cost(vision_tokens=vision, method=method), cost(vision_tokens=vision)
    assert sum(less.layer_flops) == less.prefill_flops <= whole.prefill_flops
    assert less.kv_bytes <= whole.kv_bytes
    assert less.retention <= 1


# Against the engine.


COUNTED = [family for family in FAMILIES if fv.families()[family].defines("block")]


def check_counted(family):
    """Tower, projector, each layer, the cache, the token after the prompt and the head are what torch counts."""
    model, inputs = models.tiny(family, "eager"), batch(family, ["titit"])
    depth = len(model.get_decoder().layers)
    method = fv.Uniform(layers=(depth // 3, depth - 1), keep=(0.5, 0.3))
    pictures = pictures_of(model, inputs)
    with torch.no_grad(), FlopCounterMode(display=False) as before:
        sizes = [len(one) for one in model.model.get_image_features(**pictures).pooler_output]
    layouts = family_for(model).pictures(model.config, "image", inputs, sizes)
    costs = fv.cost(
        model,
        text_tokens=inputs["input_ids"].shape[1] - sum(sizes),
        vision_tokens=sizes,
        method=method,
        tower_images=[layout.tower_images for layout in layouts],
        dtype=torch.float32,
        grids=[layout.grids for layout in layouts],
    )
    padding = 0  # what brings a Mistral 3's pictures to one size
    if family == "mistral3":
        pixels, vision = pictures["pixel_values"], model.config.vision_config
        patches = pixels[:, 0].numel() // vision.patch_size**2 - model.config.spatial_merge_size**2 * sum(sizes)
        padding = 2 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    assert costs.tower_flops + costs.projector_flops + padding == before.get_total_flops()
    with torch.no_grad(), fv.drop(model, method) as trace:
        with FlopCounterMode(display=False) as counter:
            cache = cache_in(model(**inputs, use_cache=True))
        held = sum(t.nbytes for layer in cache.layers if hasattr(layer, "keys") for t in cached(layer))
        with FlopCounterMode(display=False) as step:
            model(input_ids=torch.tensor([[5]]), **with_cache(cache), use_cache=True)
    assert of_layers(counter, family_for(model)) == list(costs.layer_flops)
    assert trace.retention == [pytest.approx(costs.retention)]
    assert [lengths[0] for lengths in trace.kv_lengths] == list(costs.kv_lengths)
    assert held == costs.kv_bytes
    states = 0  # multiplied element by element, which nobody counts
    for layer in model.get_decoder().layers:
        if mixer := getattr(layer, "linear_attn", None):
            states += 3 * 2 * mixer.num_v_heads * mixer.head_k_dim * mixer.head_v_dim
    assert costs.head_flops == 2 * model.lm_head.in_features * model.lm_head.out_features
    assert costs.decode_flops == sum(of_layers(step, family_for(model))) + states + costs.head_flops


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(COUNTED)))
def test_layers_are_measured_where_the_tower_is_not(family):
    model, inputs = models.tiny(family, "eager"), batch(family, ["titit"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(**inputs)
    costs = fv.cost(model, text_tokens=inputs["input_ids"].shape[1] - 12, vision_tokens=12)
    assert of_layers(counter, family_for(model)) == list(costs.layer_flops)


@pytest.mark.parametrize("family", COUNTED)
def test_the_engine_runs_what_was_counted(family):
    check_counted(family)


def test_pictures_of_different_sizes_in_one_count_cost_what_they_cost_together():
    """Breaks between the rows of a Mistral 3's pictures hide where one ends. All attend to one another in its tower."""
    one, two = (
        fv.cost(tiny("mistral3"), text_tokens=5, vision_tokens=11, tower_images=count).tower_flops for count in (1, 2)
    )
    assert one == two > 0


# What is refused.

REFUSED = [
    ("vision_tokens", {"vision_tokens": -1}),
    ("greater", {"vision_tokens": [576, -1]}),
    ("at least one token", {"text_tokens": 0, "vision_tokens": 0}),
    ("text_tokens", {"text_tokens": -2}),
    ("'full' or 'causal'", {"attention": "half"}),
    ("got 1 for 2", {"vision_tokens": [576, 576]}),
    ("576", {"vision_tokens": 575, "tower_images": None}),
    ("layers 0 to 5", {"method": PAPER}),
    ("1485", {"config": LlavaOnevisionConfig(), "vision_tokens": 1485, "tower_images": None}),
    ("731", {"config": LlavaOnevisionConfig(), "vision_tokens": 731, "tower_images": None}),
    ("temporal", {"config": TINY["qwen2_vl"].config(), "vision_tokens": 10, "tower_images": 3}),
]


@pytest.mark.parametrize(("message", "given"), REFUSED, ids=[message for message, _ in REFUSED])
def test_what_makes_no_sense_is_refused_with_the_value(message, given):
    with pytest.raises(fv.SettingError, match=message):
        cost(**given)


def test_onevisions_crops_are_those_that_are_named():
    asked = fv.cost(LlavaOnevisionConfig(), text_tokens=1, vision_tokens=1485, tower_images=2)
    assert asked.tower_flops == 2 * fv.cost(LlavaOnevisionConfig(), text_tokens=1, vision_tokens=730).tower_flops


def test_what_is_not_known_is_refused_by_name():
    with pytest.raises(fv.UnsupportedError, match="clip_text_model"):
        cost(CLIPConfig())


def test_a_tower_that_the_family_does_not_know_is_not_counted():
    pixtral = cost(LlavaConfig(vision_config={"model_type": "pixtral"}, text_config=SHORT.text_config))
    assert pixtral.layer_flops == cost().layer_flops
    assert pixtral.tower_flops is pixtral.projector_flops is pixtral.total_flops is None


def test_a_layer_with_a_window_holds_no_more_than_it_sees():
    whole, windowed = (
        LlavaConfig(text_config={"model_type": "mistral", "sliding_window": window}) for window in (None, 501)
    )
    full, less = cost(whole, text_tokens=24), cost(windowed, text_tokens=24)
    assert less.layer_flops == full.layer_flops  # the prefill multiplies every pair, seen or not
    assert less.kv_lengths == (500,) * 32
    assert less.kv_bytes * 600 == full.kv_bytes * 500
    assert less.decode_flops == cost(whole, text_tokens=0, vision_tokens=500).decode_flops
