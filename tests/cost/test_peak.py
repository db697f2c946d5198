"""`Cost.peak_bytes` against the bytes that live at once in `generate`'s prefill, tensor by tensor."""

from functools import cache
from types import SimpleNamespace

import pytest
import torch
import transformers
from transformers import (
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    VipLlavaConfig,
)

import foveate as fv
from foveate._transformers import cache_in, older
from foveate.methods.mustdrop import MustDrop
from foveate.methods.visiondrop import VisionDrop
from tests.bench.counting import Memory
from tests.models import FAMILIES, cached, generate, made_of, tiny
from tests.tiny import IMAGE, PAD, VIDEO

RUN = pytest.mark.skipif(
    older(transformers.__version__, "5.23"), reason="an older transformers holds other states of the tower"
)
TEXT = 40  # tokens of text, half of them behind the picture
DECODER = {"hidden_size": 256, "intermediate_size": 700, "num_hidden_layers": 6, "num_attention_heads": 4,
           "vocab_size": 96, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "patch_size": 14,
}
CLIP, SIGLIP = {"model_type": "clip_vision_model", **TOWER}, {"model_type": "siglip_vision_model", **TOWER}
PLACES = {"image_token_index": IMAGE, "video_token_index": VIDEO}
VIEWS = {"image_grid_pinpoints": [[168, 168], [336, 336]], **PLACES}
FIVE = {"pixel_values": torch.randn(1, 5, 3, 168, 168), "image_sizes": torch.tensor([[336, 336]])}
SQUARE = {"pixel_values": torch.randn(1, 3, 336, 336)}


def text(kind, grouped=4, **changed):
    return {"model_type": kind, "num_key_value_heads": grouped, **DECODER, **changed}


def llava(kind=LlavaConfig, read=-2, **changed):
    vision = {**CLIP, "image_size": 336}
    config = kind(text_config=text("llama", **changed), vision_config=vision, vision_feature_layer=read, **PLACES)
    return config, SQUARE, 576, 1


def next_():
    config = LlavaNextConfig(text_config=text("mistral", 2, sliding_window=None),
                             vision_config={**CLIP, "image_size": 168}, **VIEWS)  # fmt: skip
    return config, FIVE, 144 + 24 * 25, 5


def onevision(frames=0):
    config = LlavaOnevisionConfig(
        text_config=text("qwen2", 2), vision_feature_layer=-1, **VIEWS,
        vision_config={**SIGLIP, "image_size": 168, "vision_use_head": False},
    )  # fmt: skip
    if not frames:
        return config, FIVE, 144 + 24 * 25, 5
    return config, {"pixel_values_videos": torch.randn(1, frames, 3, 168, 168)}, 36 * frames + 1, frames


def qwen(kind, patch=14, **vision):
    rope = {"rope_type": "default", "mrope_section": [8, 8, 16], "rope_theta": 1e4}
    decoder = text(f"{kind.model_type}_text", 2, rope_parameters=rope, head_dim=64)
    tower = {"depth": 3, "num_heads": 2, "patch_size": patch, **vision}
    config = kind(text_config=decoder, vision_config=tower, image_token_id=IMAGE, video_token_id=VIDEO)
    patches = torch.randn(4 * 24 * 26, 3 * 2 * patch**2)
    return config, {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 48, 52]])}, 24 * 26, 1


WIDE = {"hidden_size": 128, "intermediate_size": 448, "out_hidden_size": 256}


SHAPES = {
    "llava": llava,
    "llava, narrow keys": lambda: llava(grouped=1),
    "vipllava": lambda: llava(VipLlavaConfig, [-2, -3, 1]),
    "llava_next": next_,
    "llava_onevision": onevision,
    "llava_onevision, video": lambda: onevision(frames=16),
    "qwen2_vl": lambda: qwen(Qwen2VLConfig, embed_dim=128, hidden_size=256, mlp_ratio=4),
    "qwen2_5_vl": lambda: qwen(Qwen2_5_VLConfig, **WIDE, fullatt_block_indexes=[1]),
    "qwen3_vl": lambda: qwen(Qwen3VLConfig, 16, **WIDE, deepstack_visual_indexes=[0, 1], num_position_embeddings=64),
}
QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
METHODS = {
    "untouched": None,
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.3)),
    "v2drop, paths": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.3), over="path"),
    "v2drop, late": fv.V2Drop(layers=(5,), keep=(0.3,)),
    "random": fv.Random(layers=(2, 4), keep=(0.5, 0.3)),
    "uniform": fv.Uniform(layers=(0,), keep=(0.1,)),
    "visiondrop": VisionDrop(
        dominant=200, contextual=30, layer_list=(2, 4), image_token_list=((100, 20), (60, 10)), reference=576
    ),
    "mustdrop": MustDrop(pruning_layers=(1, 3), global_thr=0.002, individual_thr=0.002),
    "averagepool": fv.AveragePool(keep=0.4),
    "finalkv": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.3)) + fv.FinalKV(),
}


@cache
def made(shape, dtype):
    """A random model, and one prompt for it."""
    config, pictures, tokens, count = SHAPES[shape]()
    ids = torch.full((1, TEXT + tokens), 7)
    ids[:, TEXT // 2 : -TEXT // 2] = VIDEO if "pixel_values_videos" in pictures else IMAGE
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "image_grid_thw" in pictures:
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    inputs |= {name: one.to(dtype) if one.is_floating_point() else one for name, one in pictures.items()}
    return made_of(config.model_type, config).to(dtype), inputs, tokens, count


def measured(model, inputs, method):
    """What `generate` holds at the most until the first token; its cache; vision tokens of each layer."""
    trace = None if method is None else fv.apply(model, method)
    try:
        with torch.no_grad(), Memory() as watch:
            cache = cache_in(generate(model, inputs, 1))
    finally:
        if method is not None:
            fv.remove(model)
    return SimpleNamespace(
        peak=watch.peak,
        kv=sum(one.nbytes for layer in cache.layers for one in cached(layer)),
        tokens=None if trace is None else [most for (most, *_) in trace.latest.per_layer],
    )


@RUN
@pytest.mark.parametrize(
    ("shape", "name", "dtype"),
    [
        *(("llava", name, torch.float32) for name in METHODS),
        *((shape, name, torch.float32) for shape in list(SHAPES)[1:] for name in ("untouched", "v2drop")),
        ("llava_onevision, video", "uniform", torch.float32),  # its projector is the worst moment
        *(("llava", name, torch.bfloat16) for name in ("untouched", "v2drop", "mustdrop", "uniform")),
        *((shape, "uniform", dtype) for shape in QWENS for dtype in (torch.float32, torch.bfloat16)),  # towers are
    ],
)
def test_what_lives_at_once_was_predicted(shape, name, dtype):
    model, inputs, tokens, count = made(shape, dtype)
    found = measured(model, inputs, METHODS[name])
    cost = fv.cost(
        model, text_tokens=TEXT, vision_tokens=tokens, method=METHODS[name], tower_images=count, dtype=dtype,
        tokens=found.tokens, grids=[[(24, 26)]] if "qwen" in shape else None,
    )  # fmt: skip
    assert cost.peak_bytes == pytest.approx(found.peak, rel=0.02)
    assert cost.kv_bytes == found.kv


@RUN
@pytest.mark.parametrize("name", ["untouched", "v2drop"])
def test_a_batch_holds_so_many_times_as_much(name):
    model, inputs, tokens, _ = made("llava", torch.float32)
    twice = {key: torch.cat((value, value)) for key, value in inputs.items()}
    cost = fv.cost(model, text_tokens=TEXT, vision_tokens=tokens, method=METHODS[name], dtype=torch.float32)
    assert 2 * cost.peak_bytes == pytest.approx(measured(model, twice, METHODS[name]).peak, rel=0.02)


def test_llava_7b_by_hand():
    config = LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}, dtype="float16")
    whole = fv.cost(config, text_tokens=40, vision_tokens=576)
    pictures = 2 * 577 * 1024 + 2 * 576 * 4096  # two states of the tower; its features, and these put together
    layer = 616 * (4 * 4096 + 3 * 11008)  # input of decoder and layer, residual, normed; activated, up, their product
    assert whole.peak_bytes == whole.kv_bytes + 2 * (pictures + layer + 616 * 2 * 128)
    fewer = fv.cost(config, text_tokens=40, vision_tokens=576, method=fv.preset("v2drop/llava-1.5-7b/192"))
    streams = 616 * (2 * (4096 + 4096) + 4 * (4096 + 4096))  # the last norm: two in the model's dtype, two in float32
    tables = (616 + 328 + 126 + 41) * 2 * 128  # cos and sin of all, and of the rows behind each cut
    assert fewer.peak_bytes == fewer.kv_bytes + 2 * (pictures + tables) + streams


KNOWN = {"llava", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "vipllava"}


@pytest.mark.parametrize("family", [family for family in FAMILIES if fv.families()[family].decoders])
def test_what_is_not_known_is_not_guessed(family):
    config = tiny(family).config
    found = fv.cost(config, text_tokens=9, vision_tokens=25, tower_images=1, grids=[[(5, 5)]])
    assert (found.peak_bytes is not None) == (family in KNOWN)


def test_neither_behind_windows_nor_under_resize():
    config = LlavaConfig(text_config=MistralConfig(sliding_window=600))
    assert fv.cost(config, text_tokens=23, vision_tokens=576).peak_bytes is not None
    assert fv.cost(config, text_tokens=24, vision_tokens=576).peak_bytes is None
    assert fv.cost(LlavaConfig(), text_tokens=9, vision_tokens=576, method=fv.Resize()).peak_bytes is None
