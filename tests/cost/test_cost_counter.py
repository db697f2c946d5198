"""`foveate.cost` against torch's own FLOP counter, on models without memory (meta device), part by part.

Eager attention throughout: the counter sees its two matrix products, while it knows no FLOPs for some fused kernels.
"""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForImageTextToText,
    DynamicCache,
    Gemma3Config,
    Glm4vConfig,
    Glm4vMoeConfig,
    Glm46VConfig,
    Idefics3Config,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaNextVideoConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    SmolVLMConfig,
    VideoLlavaConfig,
    VipLlavaConfig,
)
from transformers.models.llava_onevision.modeling_llava_onevision import image_size_to_num_patches

import foveate as fv

CLIP = {"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": 28, "patch_size": 7}  # fmt: skip
SIGLIP = {**CLIP, "model_type": "siglip_vision_model"}
SMALL = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 4, "num_attention_heads": 6,
         "num_key_value_heads": 2, "vocab_size": 131, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
TILE = {"hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 4,
        "image_size": 56, "patch_size": 7}  # fmt: skip
QWEN2_TOWER = {"depth": 3, "embed_dim": 32, "hidden_size": 48, "num_heads": 4, "mlp_ratio": 3, "patch_size": 6}
QWEN3_TOWER = {"depth": 5, "hidden_size": 32, "intermediate_size": 72, "num_heads": 4, "patch_size": 6,
               "out_hidden_size": 48, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 2, 9]}  # fmt: skip

QWEN25_TOWER = {"depth": 4, "hidden_size": 32, "intermediate_size": 72, "num_heads": 4, "patch_size": 6,
                "out_hidden_size": 48, "fullatt_block_indexes": [1, 9], "window_size": 36}  # fmt: skip

GLM_TOWER = {"depth": 3, "hidden_size": 32, "num_heads": 4, "patch_size": 6, "out_hidden_size": 48,
             "intermediate_size": 72, "image_size": 48}  # fmt: skip


def llava(text="llama", tower=CLIP, **settings):
    return LlavaConfig(text_config={"model_type": text, **SMALL}, vision_config=tower, **settings)


def onevision():
    tower = {**SIGLIP, "vision_use_head": False, "image_size": 384, "patch_size": 14}
    return LlavaOnevisionConfig(text_config={"model_type": "qwen2", **SMALL}, vision_config=tower)


def llava_next(kind=LlavaNextConfig, text="mistral"):
    tower = {**CLIP, "image_size": 336, "patch_size": 14}
    text = {"model_type": text, **SMALL, **({"sliding_window": None} if text == "mistral" else {})}
    return kind(text_config=text, vision_config=tower)


def llava_next_video():
    return llava_next(LlavaNextVideoConfig, "llama")


def video_llava():
    return VideoLlavaConfig(text_config={"model_type": "llama", **SMALL}, vision_config=CLIP)


def vipllava():
    text = {"model_type": "llama", **SMALL}
    return VipLlavaConfig(text_config=text, vision_config=CLIP, vision_feature_layer=(-2, -3, 1))


def paligemma(text="gemma"):
    return PaliGemmaConfig(
        text_config={"model_type": text, **SMALL, "head_dim": 24},
        vision_config={**SIGLIP, "vision_use_head": False}, projection_dim=48, image_token_index=130,
    )  # fmt: skip


def qwen2_vl():
    return Qwen2VLConfig(text_config={**SMALL, "rope_parameters": mrope(2, 1, 1)}, vision_config=QWEN2_TOWER)


def qwen2_5_vl():
    return Qwen2_5_VLConfig(text_config={**SMALL, "rope_parameters": mrope(2, 1, 1)}, vision_config=QWEN25_TOWER)


def qwen3_vl():
    # 24 values a head, though 48 / 6 is 8: the attention is wider than the residual stream.
    text = {**SMALL, "head_dim": 24, "rope_parameters": mrope(4, 4, 4)}
    return Qwen3VLConfig(text_config=text, vision_config=QWEN3_TOWER)


def gemma3():
    # A window shorter than the prompt: a layer that has one holds less than it multiplies.
    text = {**SMALL, "head_dim": 12, "sliding_window": 30, "layer_types": ["sliding_attention", "full_attention"] * 2}
    tower = {**SIGLIP, "image_size": 56}
    return Gemma3Config(text_config=text, vision_config=tower, mm_tokens_per_image=16)


def qwen3_vl_moe():
    """Every second layer would be sparse, 1 and 3; layer 1 is not."""
    text = {**SMALL, "rope_parameters": mrope(2, 1, 1), "num_experts": 5, "num_experts_per_tok": 3,
            "moe_intermediate_size": 40, "decoder_sparse_step": 2, "mlp_only_layers": [1]}  # fmt: skip
    return Qwen3VLMoeConfig(text_config=text, vision_config=QWEN3_TOWER)


def qwen3_5():
    kinds = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]
    text = {**SMALL, "head_dim": 24, "rope_parameters": {**mrope(2, 2, 2), "partial_rotary_factor": 0.5},
            "layer_types": kinds, "linear_num_key_heads": 3, "linear_num_value_heads": 6,
            "linear_key_head_dim": 16, "linear_value_head_dim": 20}  # fmt: skip
    tower = {name: value for name, value in QWEN3_TOWER.items() if name != "deepstack_visual_indexes"}
    return Qwen3_5Config(text_config=text, vision_config=tower)


def qwen3_5_moe():
    settings = {"num_experts": 5, "num_experts_per_tok": 3, "moe_intermediate_size": 40}
    text = {**qwen3_5().text_config.to_dict(), **settings, "shared_expert_intermediate_size": 56}
    del text["model_type"], text["intermediate_size"]
    return Qwen3_5MoeConfig(text_config=text, vision_config=qwen3_5().vision_config.to_dict())


def glm4v():
    return Glm4vConfig(text_config={**SMALL, "rope_parameters": mrope(2, 1, 1)}, vision_config=GLM_TOWER)


def glm4v_moe():
    """Layer 0 is dense; two experts look at every row, and three of six by turns."""
    settings = {"n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "n_shared_experts": 2}
    text = {**SMALL, **settings, "first_k_dense_replace": 1, "head_dim": 16, "rope_parameters": mrope(2, 1, 1)}
    return Glm4vMoeConfig(text_config=text, vision_config=GLM_TOWER)


def glm46v():
    text = {**SMALL, "model_type": "glm4v_text", "rope_parameters": mrope(2, 1, 1)}
    return Glm46VConfig(text_config=text, vision_config={**GLM_TOWER, "model_type": "glm4v_vision"})


def internvl():
    vision = {**TILE, "image_size": [56, 56], "patch_size": [7, 7], "use_qk_norm": True}
    return InternVLConfig(text_config={"model_type": "qwen3", **SMALL, "head_dim": 16}, vision_config=vision)


def smolvlm(kind=SmolVLMConfig):
    return kind(text_config={"model_type": "llama", **SMALL}, vision_config=TILE, scale_factor=2)


def mistral3():
    tower = {"model_type": "pixtral", **TILE, "image_size": 140}
    text = {"model_type": "mistral", **SMALL, "head_dim": 16, "sliding_window": None}
    return Mistral3Config(text_config=text, vision_config=tower, spatial_merge_size=2)


def mrope(*sections):
    return {"rope_type": "default", "mrope_section": list(sections), "rope_theta": 1e6}


FAMILIES = {
    "gemma3": gemma3,
    "idefics3": lambda: smolvlm(Idefics3Config),
    "internvl": internvl,
    "llava": llava,
    "llava_next": llava_next,
    "llava_next_video": llava_next_video,
    "llava_onevision": onevision,
    "mistral3": mistral3,
    "paligemma": paligemma,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl_moe": qwen3_vl_moe,
    "qwen3_5": qwen3_5,
    "qwen3_5_moe": qwen3_5_moe,
    "glm4v": glm4v,
    "glm4v_moe": glm4v_moe,
    "glm46v": glm46v,
    "smolvlm": smolvlm,
    "video_llava": video_llava,
    "vipllava": vipllava,
}


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


def decoder_flops(model, rows, decoded=False):
    """The counter's FLOPs of every decoder layer on its own number of rows, and of one token after them."""
    text = model.get_decoder()
    width = text.config.hidden_size
    cache, prefill, decode = DynamicCache(config=text.config), [], []
    for layer, n in zip(text.layers, rows, strict=True):
        for queries, counts in ((n, prefill), (1, decode)):
            axes = (3,) if "mrope_section" in text.config.rope_parameters else ()
            kinds = [text.config.layer_types[layer.layer_idx]] if hasattr(text.rotary_emb, "layer_types") else []
            pair = text.rotary_emb(meta(1, queries, width), meta(*axes, 1, queries), *kinds)
            inputs = {"position_embeddings": pair, "past_key_values": cache, "attention_mask": None}
            counts.append(products(count(layer, meta(1, queries, width), **inputs)))
            if counts is decode and hasattr(layer, "linear_attn"):  # multiplied element by element, which nobody counts
                mixer = layer.linear_attn
                counts[-1] += 3 * 2 * mixer.num_v_heads * mixer.head_k_dim * mixer.head_v_dim
    return prefill, decode


def products(counter):
    """All FLOPs but those of convolutions over rows, which are no matrix products."""
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "conv" not in str(op))


def head_flops(model):
    return count(model.lm_head, meta(1, 1, model.lm_head.in_features)).get_total_flops()


METHODS = [fv.V2Drop(layers=(1, 3), keep=(0.5, 0.1)), fv.Uniform(layers=(2,), keep=(0.0,))]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_decoder_layer_the_next_token_and_the_head_equal_the_counter(family, method):
    config = FAMILIES[family]()
    model = build(config)
    found = fv.cost(config, text_tokens=11, vision_tokens=64, method=method, tower_images=1, grids=[[(8, 8)]])
    prefill, decode = decoder_flops(model, [11 + n for n in found.tokens])
    assert list(found.layer_flops) == prefill
    assert found.head_flops == head_flops(model)
    assert found.decode_flops == sum(decode) + head_flops(model)


@pytest.mark.parametrize("text", ["gemma", "gemma2"])
def test_every_decoder_a_paligemma_may_have_equals_the_counter(text):
    config = paligemma(text)
    found = fv.cost(config, text_tokens=5, vision_tokens=16)
    assert list(found.layer_flops) == decoder_flops(build(config), [21] * 4)[0]


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_decoder_a_llava_may_have_equals_the_counter(text):
    config = llava(text)
    found = fv.cost(config, text_tokens=5, vision_tokens=16)
    assert list(found.layer_flops) == decoder_flops(build(config), [21] * 4)[0]


def test_the_whole_language_model_has_no_other_matrix_product_than_rotary():
    config = llava()
    counter = count(build(config).model.language_model, inputs_embeds=meta(1, 21, 48))
    rotary = inside(counter, "rotary_emb")
    assert counter.get_total_flops() - rotary == fv.cost(config, text_tokens=5, vision_tokens=16).prefill_flops


TOWERS = {
    "CLIP at layer -2": {},
    "CLIP, all tokens of two layers": {"vision_feature_layer": [-2, -1], "vision_feature_select_strategy": "full"},
    "SigLIP with its head": {"tower": SIGLIP, "vision_feature_select_strategy": "full"},
    "SigLIP without": {"tower": {**SIGLIP, "vision_use_head": False}, "vision_feature_select_strategy": "full"},
}


@pytest.mark.parametrize("settings", TOWERS.values(), ids=TOWERS.keys())
@pytest.mark.parametrize("images", [1, 3])
def test_a_llavas_tower_and_projector_equal_the_counter(settings, images):
    config = llava(**settings)
    counter = count(build(config).model.get_image_features, meta(images, 3, 28, 28))
    each = 17 if settings.get("vision_feature_layer") else 16
    found = fv.cost(config, text_tokens=5, vision_tokens=[each] * images)
    assert found.tower_flops == inside(counter, "CLIPVisionModel", "SiglipVisionModel")
    assert found.projector_flops == inside(counter, "LlavaMultiModalProjector")


TILED = {"llava_next": llava_next, "llava_onevision": onevision}


@pytest.mark.parametrize("family", TILED)
@pytest.mark.parametrize(("height", "width"), [(480, 640), (384, 384), (2000, 1500)])
def test_the_tower_and_projector_of_tiles_equal_the_counter(family, height, width):
    config = TILED[family]()
    side = config.vision_config.image_size
    crops = image_size_to_num_patches([height, width], config.image_grid_pinpoints, side)
    features = []

    def encode():
        sizes = torch.tensor([[height, width]])
        features.append(build(config).model.get_image_features(meta(1, crops, 3, side, side), sizes))

    counter = count(encode)
    tokens = len(features[0].pooler_output[0])
    found = fv.cost(config, text_tokens=5, vision_tokens=tokens, tower_images=crops)
    assert found.projector_flops == inside(counter, "LlavaOnevisionMultiModalProjector", "LlavaNextMultiModalProjector")
    assert found.tower_flops == inside(counter, "SiglipVisionModel", "CLIPVisionModel")


@pytest.fixture(scope="module")
def packed():
    """Tells (config, crops, vision tokens) of a picture of some size, as transformers crops, unpads and shrinks it."""
    models = {family: build(make()).model for family, make in TILED.items()}

    def pack(family, height, width):
        model = models[family]
        vision = model.config.vision_config
        crops = image_size_to_num_patches([height, width], model.config.image_grid_pinpoints, vision.image_size)
        views, newline = meta(crops, (vision.image_size // vision.patch_size) ** 2, 48), model.image_newline
        further = ("default",) if family == "llava_next" else ()
        features, _ = model.pack_image_features(
            [views], torch.tensor([[height, width]]), *further, image_newline=newline
        )
        return model.config, crops, len(features[0])

    return pack


@pytest.mark.parametrize("family", TILED)
@given(height=st.integers(100, 1600), width=st.integers(100, 1600))
def test_crops_are_told_rightly_or_asked_for(packed, family, height, width):
    config, crops, tokens = packed(family, height, width)
    exact = fv.cost(config, text_tokens=0, vision_tokens=tokens, tower_images=crops)
    try:
        told = fv.cost(config, text_tokens=0, vision_tokens=tokens)
    except fv.SettingError as refusal:
        told, choices = exact, re.findall(r"\d+", str(refusal).split("pictures")[0])[1:]
    else:
        choices = [str(crops)]
    assert told == exact
    assert str(crops) in choices


@pytest.mark.parametrize("picture", [(480, 640), (300, 1700), (720, 1280), (665, 265)])
def test_onevisions_crops_are_told_where_the_count_leaves_no_doubt(packed, picture):
    config, crops, tokens = packed("llava_onevision", *picture)
    found = fv.cost(config, text_tokens=0, vision_tokens=tokens)
    assert found == fv.cost(config, text_tokens=0, vision_tokens=tokens, tower_images=crops)


def test_onevisions_video_costs_a_picture_a_frame():
    config = onevision()
    counter = count(build(config).model.get_video_features, meta(1, 32, 3, 384, 384))
    found = fv.cost(config, text_tokens=5, vision_tokens=32 * 196 + 1)
    assert found.projector_flops == inside(counter, "LlavaOnevisionMultiModalProjector")
    assert found.tower_flops == inside(counter, "SiglipVisionModel")


@pytest.mark.parametrize("images", [1, 3])
def test_gemmas_tower_and_projector_equal_the_counter(images):
    config = gemma3()
    counter = count(build(config).model.get_image_features, meta(images, 3, 56, 56))
    found = fv.cost(config, text_tokens=5, vision_tokens=[16] * images)
    assert found.tower_flops == inside(counter, "SiglipVisionModel")
    assert found.tower_flops + found.projector_flops == counter.get_total_flops()
    with pytest.raises(fv.SettingError, match="A picture has 16 vision tokens in this model; 17 is not a multiple"):
        fv.cost(config, text_tokens=5, vision_tokens=17)


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
def test_next_videos_frames_are_pooled_before_the_projector(mode):
    config = llava_next_video()
    config.spatial_pool_mode = mode
    counter = count(build(config).model.get_video_features, meta(1, 8, 3, 336, 336))
    found = fv.cost(config, text_tokens=5, vision_tokens=8 * 144)
    assert found.projector_flops == inside(counter, "LlavaNextVideoMultiModalProjector", "LlavaNextVideoPooler")
    assert found.tower_flops == inside(counter, "CLIPVisionModel")


def test_video_llavas_projector_gets_the_cls_of_frames():
    config = video_llava()
    for method, pixels, tokens in (
        ("get_image_features", meta(2, 3, 28, 28), [16, 16]),
        ("get_video_features", meta(2, 5, 3, 28, 28), [5 * 17, 5 * 17]),
    ):
        counter = count(getattr(build(config).model, method), pixels)
        found = fv.cost(config, text_tokens=5, vision_tokens=tokens)
        assert found.projector_flops == inside(counter, "VideoLlavaMultiModalProjector")
        assert found.tower_flops == inside(counter, "CLIPVisionModel")


@pytest.mark.parametrize("images", [1, 3])
def test_paligemmas_tower_and_projector_equal_the_counter(images):
    config = paligemma()
    counter = count(build(config).model.get_image_features, meta(images, 3, 28, 28))
    found = fv.cost(config, text_tokens=5, vision_tokens=[16] * images)
    assert found.tower_flops == inside(counter, "SiglipVisionModel")
    assert found.projector_flops == inside(counter, "PaliGemmaMultiModalProjector")


def test_vipllavas_projector_reads_several_layers():
    config = vipllava()
    counter = count(build(config).model.get_image_features, meta(2, 3, 28, 28))
    found = fv.cost(config, text_tokens=5, vision_tokens=[16, 16])
    assert found.projector_flops == inside(counter, "VipLlavaMultiModalProjector")
    assert found.tower_flops == inside(counter, "CLIPVisionModel")


MERGERS = ("merger", "downsample", "deepstack_merger_list.0", "deepstack_merger_list.1")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name.startswith(("qwen", "glm"))])
@pytest.mark.parametrize("grids", [[(1, 4, 6)], [(1, 4, 6), (3, 8, 14)]], ids=["image", "image and video"])
def test_a_qwens_tower_and_mergers_equal_the_counter(family, grids):
    config = FAMILIES[family]()
    tower = build(config).model.visual.to_empty(device="cpu")
    patches = torch.zeros(sum(map(math.prod, grids)), 3 * 2 * 6 * 6)
    flat = family.startswith("glm")  # takes the frames of a video for images
    given = [(1, h, w) for t, h, w in grids for _ in range(t)] if flat else grids
    counter = count(tower, patches, grid_thw=torch.tensor(given))
    sizes, frames = [math.prod(grid) // 4 for grid in grids], [grid[0] for grid in grids]
    cells = [[(h // 2, w // 2)] * t for t, h, w in grids]
    found = fv.cost(config, text_tokens=5, vision_tokens=sizes, grids=cells)
    if family != "qwen2_5_vl":  # its windows are asked for by grid
        assert found == fv.cost(config, text_tokens=5, vision_tokens=sizes, tower_images=frames)
    assert found.projector_flops == inside(counter, *MERGERS)
    assert found.tower_flops + found.projector_flops == counter.get_total_flops()


@pytest.mark.parametrize(("height", "width"), [(56, 56), (98, 70)])
@pytest.mark.parametrize("pictures", [1, 3])
def test_mistral3s_tower_and_projector_equal_the_counter(height, width, pictures):
    """Several pictures are one sequence of patches, each multiplied with all."""
    config = mistral3()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    pixels, sizes = torch.ones(pictures, 3, height, width), torch.tensor([[height, width]] * pictures)
    counter = count(model.model.get_image_features, pixels, sizes)
    tokens = (height // 14) * (width // 14)
    found = fv.cost(config, text_tokens=5, vision_tokens=[tokens] * pictures)
    rotary = inside(counter, "vision_tower.patch_positional_embedding", "patch_positional_embedding")
    assert found.tower_flops == inside(counter, "PixtralVisionModel") - rotary
    assert found.projector_flops == inside(counter, "Mistral3MultiModalProjector")


PROJECTORS = {"internvl": "InternVLMultiModalProjector", "smolvlm": "SmolVLMConnector", "idefics3": "Idefics3Connector"}


@pytest.mark.parametrize("tiles", [[1], [3, 1], [13]])
@pytest.mark.parametrize("family", PROJECTORS)
def test_the_tower_and_projector_of_square_tiles_equal_the_counter(family, tiles):
    config = FAMILIES[family]()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    pixels = torch.ones(sum(tiles), 3, 56, 56)
    counter = count(model.model.get_image_features, pixels if family == "internvl" else pixels[None])
    found = fv.cost(config, text_tokens=5, vision_tokens=[16 * count for count in tiles])
    assert found.projector_flops == inside(counter, PROJECTORS[family])
    assert found.tower_flops + found.projector_flops == counter.get_total_flops()


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
    found = fv.cost(config, text_tokens=40, vision_tokens=576)
    prefill, decode = decoder_flops(model, [616] * 32)
    assert found.prefill_flops == sum(prefill) == 8_177_382_850_560
    assert found.decode_flops == sum(decode) + head_flops(model)
    counter = count(model.model.get_image_features, meta(1, 3, 336, 336))
    assert found.projector_flops == inside(counter, "LlavaMultiModalProjector")
    assert found.tower_flops == inside(counter, "CLIPVisionModel")
    assert found.kv_bytes == 32 * 2 * 616 * 4096 * 2


def test_the_cache_has_as_many_bytes_as_counted():
    config = qwen3_vl()
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    cache = model.model.language_model(inputs_embeds=torch.zeros(1, 9, 48), use_cache=True).past_key_values
    stored = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert fv.cost(config, text_tokens=9, vision_tokens=0, dtype=torch.float32).kv_bytes == stored
