"""`foveate.cost` against torch's own FLOP counter, on models without memory (meta device), part by part.

Eager attention throughout: the counter sees its two matrix products, while it knows no FLOPs for some fused kernels.
"""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    VideoLlavaConfig,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

import foveate as fv
from foveate._transformers import with_cache
from tests.cost.test_cost import COUNTED, check_counted

CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 7}  # fmt: skip
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": 131, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip


def llava(tower=CLIP, **settings):
    return LlavaConfig(text_config={"model_type": "llama", **SMALL}, vision_config=tower, **settings)


def onevision():
    tower = {**SIGLIP, "vision_use_head": False, "image_size": 384, "patch_size": 14}
    return LlavaOnevisionConfig(text_config={"model_type": "qwen2", **SMALL}, vision_config=tower)


def llava_next(kind=LlavaNextConfig, text="mistral"):
    tower = {**CLIP, "image_size": 336, "patch_size": 14}
    text = {"model_type": text, **SMALL, **({"sliding_window": None} if text == "mistral" else {})}
    return kind(text_config=text, vision_config=tower)


def build(config):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            config, attn_implementation="eager", experts_implementation="batched_mm"
        ).eval()


def count(call, *args, **kwargs):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(*args, **kwargs)
    return counter


def inside(counter, *names):
    """FLOPs inside modules of these names; the counter calls the outermost by their class."""
    return sum(sum(ops.values()) for path, ops in counter.get_flop_counts().items() if path.split(".", 1)[-1] in names)


def meta(*shape):
    return torch.empty(*shape, device="meta")


def decoder_flops(model, rows):
    """The counter's FLOPs of every decoder layer on its own number of rows, and of one token after them."""
    text = model.get_decoder()
    width = text.config.hidden_size
    cache, prefill, decode = DynamicCache(config=text.config), [], []
    for layer, n in zip(text.layers, rows, strict=True):
        for queries, counts in ((n, prefill), (1, decode)):
            pair = text.rotary_emb(meta(1, queries, width), meta(1, queries))
            inputs = {"position_embeddings": pair, **with_cache(cache), "attention_mask": None}
            counts.append(count(layer, meta(1, queries, width), **inputs).get_total_flops())
    return prefill, decode


@pytest.mark.usefixtures("other_models")
@pytest.mark.parametrize("family", COUNTED)
@pytest.mark.further
def test_the_engine_runs_what_was_counted_on_models_of_other_sizes(family):
    check_counted(family)


TOWERS = {
    "CLIP at layer -2": {},
    "CLIP, all tokens of two layers": {"vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full"},
    "SigLIP with its head": {"tower": SIGLIP, "vision_feature_select_strategy": "full"},
    "SigLIP without": {"tower": {**SIGLIP, "vision_use_head": False}, "vision_feature_select_strategy": "full"},
}


PROJECTORS = [
    f"{family}MultiModalProjector"
    for family in ("Llava", "LlavaNext", "LlavaNextVideo", "LlavaOnevision", "VideoLlava")
]


def check_encoding(config, modality, *pixels, tokens=None, **known):
    """Tower and projector are what the counter says of encoding these."""
    answers, model = [], build(config).model
    counter = count(lambda: answers.append(getattr(model, f"get_{modality}_features")(*pixels)))
    if tokens is None:
        tokens = len(answers[0].pooler_output[0])
    costs = fv.cost(config, text_tokens=5, vision_tokens=tokens, **known)
    assert costs.tower_flops == inside(counter, "CLIPVisionModel", "SiglipVisionModel") > 0
    assert costs.projector_flops == inside(counter, *PROJECTORS, "LlavaNextVideoPooler") > 0


@pytest.mark.parametrize("settings", TOWERS.values(), ids=TOWERS.keys())
@pytest.mark.parametrize("images", [1, 3])
def test_a_llavas_tower_and_projector_equal_the_counter(settings, images):
    each = 17 if settings.get("vision_feature_layer") else 16
    check_encoding(llava(**settings), "image", meta(images, 3, 28, 28), tokens=[each] * images)


TILED = {"llava_next": llava_next, "llava_onevision": onevision}


@pytest.mark.parametrize("family", TILED)
@pytest.mark.parametrize(("height", "width"), [(480, 640), (384, 384), (2000, 1500)])
def test_the_tower_and_projector_of_tiles_equal_the_counter(family, height, width):
    config = TILED[family]()
    side = config.vision_config.image_size
    crops = image_size_to_num_patches([height, width], config.image_grid_pinpoints, side)
    pixels, sizes = meta(1, crops, 3, side, side), torch.tensor([[height, width]])
    check_encoding(config, "image", pixels, sizes, tower_images=crops)


def test_onevisions_video_costs_a_picture_a_frame():
    check_encoding(onevision(), "video", meta(1, 32, 3, 384, 384), tokens=32 * 196 + 1, tower_images=32)


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
def test_next_videos_frames_are_pooled_before_the_projector(mode):
    config = llava_next(LlavaNextVideoConfig, "llama")
    config.spatial_pool_mode = mode
    check_encoding(config, "video", meta(1, 8, 3, 336, 336), tokens=8 * 144, tower_images=8)


def test_video_llavas_projector_gets_the_cls_of_frames():
    config = VideoLlavaConfig(text_config={"model_type": "llama", **SMALL}, vision_config=CLIP)
    check_encoding(config, "image", meta(2, 3, 28, 28), tokens=[16, 16])
    check_encoding(config, "video", meta(2, 5, 3, 28, 28), tokens=[5 * 17, 5 * 17])


def llava_7b():
    return LlavaConfig(
        vision_config={"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                       "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14},
        text_config={"model_type": "llama", "vocab_size": 32064},
        dtype="float16",
    )  # fmt: skip


def test_llava_1_5_7b_equals_the_counter_part_by_part():
    config = llava_7b()
    model = build(config)
    costs = fv.cost(config, text_tokens=40, vision_tokens=576)
    prefill, decode = decoder_flops(model, [616] * 32)
    assert costs.prefill_flops == sum(prefill) == 8_177_382_850_560
    assert costs.decode_flops == sum(decode) + costs.head_flops
    counter = count(model.model.get_image_features, meta(1, 3, 336, 336))
    assert costs.projector_flops == inside(counter, "LlavaMultiModalProjector")
    assert costs.tower_flops == inside(counter, "CLIPVisionModel")
    assert costs.kv_bytes == 32 * 2 * 616 * 4096 * 2
