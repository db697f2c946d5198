"""Tiny random models of the decoder-type VLMs without a hand-written family, and prompts for them, made by hand.

`make(name)` answers (model, case). `case.batch(model, ["tit", "titit"])` is a left-padded batch; a letter is a piece:
"t" three text tokens, "i" an image, "v" a video. A sample has the same pieces alone and in any batch.

`gemma4_unified_shared` is a second model of one type, whose last layers borrow keys. Kimi's films have one frame a
chunk, and Nemotron has none: others raise in transformers.
"""

# ruff: noqa: C408

import inspect
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto import modeling_auto

from foveate.families.proved import PROVED

PAD, AUDIO, IMAGE, VIDEO, START, END, VOCABULARY, DEPTH = 0, 90, 91, 92, 93, 94, 100, 4
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=DEPTH, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    initializer_range=0.2, tie_word_embeddings=False,
)  # fmt: skip
VIT = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_channels=3, image_size=32,
    patch_size=8, initializer_range=0.2,
)  # fmt: skip
PATCHES = dict(  # towers that take patches of pictures of any size
    depth=2, hidden_size=32, intermediate_size=24, num_heads=2, in_channels=3, patch_size=4, spatial_merge_size=2,
    temporal_patch_size=2, initializer_range=0.2, out_hidden_size=32,
)  # fmt: skip
MROPE = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
MOE = dict(moe_intermediate_size=16, num_experts_per_tok=2, n_routed_experts=4, num_experts=4, num_local_experts=4)
GRIDS = ((1, 4, 6), (1, 6, 4), (1, 2, 4), (1, 8, 4))
FILMS = ((3, 4, 4), (2, 4, 6))
WINDOWS = ("sliding_window", "sliding_window_size", "attention_chunk_size")
Picture = dict[str, Any]
Rng = torch.Generator


@dataclass
class Case:
    """A type's config, and what its processor would make of pictures and videos.

    Attributes:
        config: Arguments of its config class.
        image, video: Called with a number and a generator; answers tensors, batch 1, and the ids they have in the
            prompt: None for one run of placeholders of as many as there are features.
        kind: The class; None for the one that transformers maps the type to.
        type: The `model_type`, where it differs from the name.
        extra: Further inputs, from (batch, columns) ids.
        apart: Images and videos do not go in one call.
        one: One picture a sample.
        join: How tensors of several pictures become one: by name; else torch.cat.
        mend: Called with the model: what transformers itself breaks is put right.
    """

    config: dict[str, Any]
    image: Callable[..., tuple[Picture, Any]]
    video: Callable[..., tuple[Picture, Any]] | None = None
    kind: str | None = None
    type: str | None = None
    extra: Callable[[Tensor], Picture] = lambda ids: {}
    apart: bool = False
    one: bool = False
    join: dict[str, Callable[[list[Any]], Any]] = field(default_factory=dict)
    mend: Callable[[Any], object] = lambda model: None

    def batch(self, model: Any, words: list[str]) -> dict[str, Any]:
        """A left-padded batch."""
        rows, pictures = [], []
        for word in words:
            rng = torch.Generator().manual_seed(zlib.crc32(word.encode()))
            ids, count = [1], itertools.count()
            for letter in word:
                if letter == "t":
                    ids += torch.randint(3, 80, (3,), generator=rng).tolist()
                    continue
                tensors, tokens = (self.image if letter == "i" else self.video)(next(count), rng)
                ids += tokens if tokens is not None else _run(model, tensors, letter)
                pictures.append(tensors)
            rows.append(ids)
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        live = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        inputs = {"input_ids": ids, "attention_mask": live}
        for name in dict.fromkeys(name for picture in pictures for name in picture):
            parts = [picture[name] for picture in pictures if name in picture]
            inputs[name] = self.join.get(name, _joined)(parts)
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int() + 3 * (ids == AUDIO).int()
        return inputs | self.extra(ids)


def _joined(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [one for part in parts for one in part]


def core(model: Any) -> Any:
    """The module with get_image_features that is nearest to the decoder."""
    inner = getattr(model, "model", None)
    return inner if hasattr(inner, "get_image_features") else model


def features(model: Any, tensors: Picture, modality: str) -> Any:
    """The answer of a `get_*_features`."""
    call = getattr(core(model), f"get_{modality}_features")
    arguments = {k: v for k, v in tensors.items() if k in inspect.signature(call).parameters}
    with torch.no_grad():
        return call(**arguments, return_dict=True)


def rows(output: Any) -> int:
    """Vision tokens in such an answer."""
    pooled = getattr(output, "pooler_output", None)
    if pooled is None:
        deep = getattr(output, "deepstack_features", None)
        pooled = output.last_hidden_state if deep is None else deep[0][1]
    pieces = [pooled] if isinstance(pooled, Tensor) else pooled
    return sum(one.shape[:-1].numel() for one in pieces)


def _run(model: Any, tensors: Picture, letter: str) -> list[int]:
    modality = "image" if letter == "i" else "video"
    return [IMAGE if letter == "i" else VIDEO] * rows(features(model, tensors, modality))


def kind_of(name: str) -> str:
    """The `model_type` of a case."""
    return CASES[name]().type or name


def known(name: str) -> bool:
    """Whether the installed transformers is new enough for a case."""
    one = PROVED.get(kind_of(name))
    return one is None or Version(one.since) <= Version(transformers.__version__)


def make(name: str, attention: str | None = None, window: int | None = None) -> tuple[Any, Case]:
    """A tiny random model, its weights the same for every attention, and its case.

    Args:
        name: Of a case.
        attention: The kernel; None for the model's own choice.
        window: How far layers with a window see, where there are such.
    """
    case, kind = CASES[name](), kind_of(name)
    config = AutoConfig.for_model(kind, **case.config)
    text = config.get_text_config()
    for setting in WINDOWS:
        if window is not None and isinstance(getattr(text, setting, None), int):
            setattr(text, setting, window)
    if attention is not None:
        config._attn_implementation = attention
    classes = {
        **modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    torch.manual_seed(0)
    model = getattr(transformers, case.kind or classes[kind])(config).eval()
    with torch.no_grad():  # zeros and unit norms would hide wrong gathers
        for label, weight in model.named_parameters():
            if not weight.is_floating_point():
                continue
            if not weight.isfinite().all() or weight.abs().max() > 1e4:  # left empty by a class without init
                weight.copy_(0.1 * torch.randn_like(weight))
            if weight.dim() == 1 or not weight.any():
                weight.add_(0.1 * torch.randn_like(weight))
            if label.endswith("A_log"):
                weight.sub_(4)
        for buffer in model.buffers():
            if buffer.is_floating_point() and not buffer.isfinite().all():
                buffer.zero_()
    if model.generation_config is not None:
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = PAD
    case.mend(model)
    return model, case


# As many settings a line as fit.
# fmt: off
CASES: dict[str, Callable[[], Case]] = {}
"""Makes the case of a type, by name."""
TIMM = ("fast_vlm", "perception_lm", "gemma3n")
"""Types whose towers are of timm, which needs torchvision."""


def case(*names: str) -> Callable[[Callable[[str], Case]], Callable[[str], Case]]:
    """Register a function for one or several types; it gets the name."""

    def note(make_case: Callable[[str], Case]) -> Callable[[str], Case]:
        for name in names:
            CASES[name] = lambda name=name: make_case(name)
        return make_case

    return note


# -- pictures ------------------------------------------------------------------------------------------------------


def square(side: int = 32) -> Callable[..., tuple[Picture, Any]]:
    """One square."""
    return lambda at, rng: ({"pixel_values": torch.randn(1, 3, side, side, generator=rng)}, None)


def tiles(side: int = 32, counts: tuple[int, ...] = (3, 1)) -> Callable[..., tuple[Picture, Any]]:
    """Several square tiles a picture, in one run."""
    return lambda at, rng: ({"pixel_values": torch.randn(counts[at % len(counts)], 3, side, side, generator=rng)}, None)


def patches(width: int, *, film: bool = False, more: Picture | None = None, shape: Any = None) -> Callable[..., Any]:
    """Rows of patches and a grid; `shape` makes of their number what the tower takes."""

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        grid = (FILMS if film else GRIDS)[at % 2]
        count = grid[0] * grid[1] * grid[2]
        pixels = torch.randn(*(shape(count) if shape else (count, width)), generator=rng)
        names = ("pixel_values_videos", "video_grid_thw") if film else ("pixel_values", "image_grid_thw")
        return {names[0]: pixels, names[1]: torch.tensor([grid]), **(more or {})}, None

    return picture


def stamped(width: int) -> Callable[..., Any]:
    """A film whose frames are runs of their own, behind a time stamp (Qwen3-VL)."""
    inner = patches(width, film=True)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        tensors, _ = inner(at, rng)
        grid = FILMS[at % 2]
        return tensors, [one for _ in range(grid[0]) for one in (5, 6, START, *[VIDEO] * (grid[1] * grid[2] // 4), END)]

    return picture


def qwen(
    name: str, text: Picture, vision: Picture, top: Picture | None = None, tower: Picture = PATCHES, **more: Any
) -> Case:
    """A tower that takes patches, and tokens with M-RoPE or without."""
    vision = {**tower, **vision}
    side, time = vision["patch_size"], vision.get("temporal_patch_size", 1)
    width = 3 * time * side**2
    config = dict(
        text_config={**TEXT, **text}, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END, tie_word_embeddings=False, **(top or {}),
    )
    makers = {"image": patches(width), "video": patches(width, film=True), **more}
    return Case(config, **makers)


# -- towers of patches ---------------------------------------------------------------------------------------------


@case("glm_ocr", "glmga")
def glm(name: str) -> Case:
    rope = dict(
        rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2] if name == "glm_ocr" else [1, 1, 0],
        partial_rotary_factor=1.0 if name == "glm_ocr" else 0.5,
    )
    return qwen(name, dict(rope_parameters=rope), dict(image_size=32), dict(
        image_start_token_id=START, image_end_token_id=END, video_start_token_id=95, video_end_token_id=96),
        image=fenced(24 * 4, START, END), video=fenced(24 * 4, 95, 96, film=True), extra=film_types, apart=True)


def film_types(ids: Tensor) -> Picture:
    """Placeholders between a video's start and end are of a video (GLM)."""
    inside = (ids == 95).cumsum(-1) > (ids == 96).cumsum(-1)
    return {"mm_token_type_ids": (ids == IMAGE).int() * (1 + inside.int())}


def fenced(width: int, start: int, end: int, *, film: bool = False) -> Callable[..., Any]:
    """As `patches`, between a start and an end token; of a film a run of image placeholders a frame (GLM)."""
    inner = patches(width, film=film)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        tensors, _ = inner(at, rng)
        grid = (FILMS if film else GRIDS)[at % 2]
        run = [IMAGE] * (grid[1] * grid[2] // 4)
        if not film:
            return tensors, [start, *run, end]
        return tensors, [start, *[one for _ in range(grid[0]) for one in (START, *run, END, 7)], end]

    return picture


@case("glm5_next")
def glm5(name: str) -> Case:
    text = dict(
        moe_intermediate_size=16, num_key_value_heads=4, n_routed_experts=4, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=0, qk_nope_head_dim=8, v_head_dim=8, num_experts_per_tok=2, index_topk=8, index_head_dim=8,
        index_n_heads=16, head_dim=0, linear_head_dim=8, linear_num_heads=4, hc_mult=2, hc_sinkhorn_iters=3,
        index_kpool=4,
    )
    return qwen(name, text, dict(image_size=32, projection_intermediate_size=40), dict(
        image_start_token_id=START, image_end_token_id=END, video_start_token_id=95, video_end_token_id=96),
        image=fenced(96, START, END), video=fenced(96, 95, 96, film=True))


EARS = dict(
    d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=16, num_mel_bins=8, output_dim=32,
)


@case("qwen2_5_omni_thinker")
def omni(name: str) -> Case:
    top = dict(audio_config=EARS, audio_token_index=AUDIO, image_token_index=IMAGE, video_token_index=VIDEO)
    return qwen(name, dict(rope_parameters=MROPE), dict(fullatt_block_indexes=(1,), window_size=16), top)


@case("qwen3_omni_moe_thinker")
def omni3(name: str) -> Case:
    text = dict(MOE, rope_parameters={**MROPE, "mrope_interleaved": True})
    top = dict(audio_config=dict(EARS, downsample_hidden_size=16), audio_token_id=AUDIO)
    return qwen(name, text, dict(deepstack_visual_indexes=(0, 1), num_position_embeddings=64), top)


@case("cosmos3_omni")
def cosmos_omni(name: str) -> Case:
    text = dict(rope_parameters={**MROPE, "mrope_interleaved": True})
    return qwen(name, text, dict(deepstack_visual_indexes=(0, 1), num_position_embeddings=64), video=stamped(96))


@case("cosmos3_edge")
def cosmos_edge(name: str) -> Case:
    text = dict(rope_parameters={**MROPE, "mrope_interleaved": True})
    vision = dict(num_patches=16, spatial_merge_size=2)
    return qwen(name, text, vision, dict(projector_hidden_size=24), VIT, video=stamped(3 * 64))


@case("cohere_compass")
def compass(name: str) -> Case:
    rope = {"sliding_attention": MROPE, "full_attention": None}
    text = dict(rope_parameters=rope, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=16)
    return qwen(name, text, dict(deepstack_visual_indexes=(0, 1), num_position_embeddings=64), video=stamped(96))


@case("dots3_note")
def dots(name: str) -> Case:
    text = dict(
        MOE, num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8,
        v_head_dim=8, index_topk=64, index_head_dim=8, index_n_heads=16, head_dim=12, sliding_window=16,
        shared_experts_intermediate_size=16, swa_num_attention_heads=2, swa_num_key_value_heads=2, swa_q_lora_rank=16,
        swa_kv_lora_rank=16, swa_head_dim=12, swa_qk_nope_head_dim=8, swa_v_head_dim=8,
    )
    audio = dict(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        head_dim=8, downsample_hidden_size=8, adapter_input_size=16, adapter_out_dim=32, conv_output_size=64,
    )
    vision = {
        "patch_size": 4, "moe_intermediate_size": 16, "num_local_experts": 4, "mlp_layer_types": ["dense", "sparse"],
        "per_layer_config": {1: {"num_local_experts": 4, "num_experts_per_tok": 2}}, "adapter_in_dim": 16,
        "adapter_out_dim": 32,
    }
    return qwen(name, text, vision, dict(audio_config=audio, audio_token_id=AUDIO), VIT)


@case("ernie4_5_vl_moe")
def ernie(name: str) -> Case:
    text = dict(
        moe_intermediate_size=[16, 8], moe_k=2, moe_num_experts=4,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"],
        rope_parameters=dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2]),
    )
    top = dict(image_start_token_id=START, image_end_token_id=END, video_start_token_id=95, video_end_token_id=96)
    case = qwen(name, text, {}, top)
    case.image = patches(48)
    case.extra = lambda ids: {"moe_mm_token_type_ids": ((ids == IMAGE) | (ids == VIDEO)).int()}
    case.video = lambda at, rng: (
        {"pixel_values_videos": torch.randn(64, 48, generator=rng), "video_grid_thw": torch.tensor([(4, 4, 4)])},
        [VIDEO] * 8,
    )
    return case


@case("exaone4_5")
def exaone(name: str) -> Case:
    text = dict(
        model_type="exaone4", sliding_window=16, sliding_window_pattern=2,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    return qwen(name, text, dict(fullatt_block_indexes=(1,), window_size=16, num_key_value_heads=1))


@case("hunyuan_vl")
def hunyuan(name: str) -> Case:
    vision = dict(patch_size=4, num_key_value_heads=2, out_hidden_size=32, text_hidden_size=32, spatial_merge_size=2,
                  max_image_size=64, img_max_token_num=64, max_vit_seq_len=256)
    text = dict(
        rope_parameters=dict(
            rope_type="xdrope", rope_theta=1e4, xdrope_section=[1, 1, 1, 1], alpha=1000.0, mscale=1.0, factor=1.0,
        ),
    )
    return qwen(name, text, vision, dict(im_start_id=START, im_end_id=END, im_newline_id=95), VIT, video=None)


@case("hyperclovax_vision_v2")
def clova(name: str) -> Case:
    return qwen(name, {}, dict(model_type="qwen2_5_vl_vision", fullatt_block_indexes=(1,), window_size=16))


@case("kimi_k25")
def kimi(name: str) -> Case:
    text = dict(
        model_type="deepseek_v3", moe_intermediate_size=16, num_key_value_heads=4, n_routed_experts=4, kv_lora_rank=16,
        q_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8, n_group=1, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1,
    )
    vision, image = dict(patch_size=4, pos_emb_height=8, pos_emb_width=8), patches(0, shape=lambda n: (n, 3, 4, 4))

    def film(at: int, rng: Rng) -> tuple[Picture, Any]:
        pixels, grids = torch.randn(48, 3, 4, 4, generator=rng), torch.tensor([(1, 4, 4)] * 3)
        return {"pixel_values_videos": pixels, "video_grid_thw": grids}, [5, *[VIDEO] * 4, 6] * 3

    case = qwen(name, text, vision, dict(projection_hidden_size=16), VIT, image=image, video=film)
    del case.config["text_config"]["head_dim"]
    return case


@case("lfm3_vl")
def lfm3(name: str) -> Case:
    text = dict(layer_types=["conv", "full_attention", "conv", "sliding_attention"], conv_L_cache=3, sliding_window=16)
    vision = dict(
        patch_size=4, num_key_value_heads=1, in_channels=3, spatial_merge_size=2, temporal_patch_size=2,
        layer_types=["conv", "full_attention"],
    )
    return qwen(name, text, vision, dict(projector_hidden_size=32), VIT)


@case("minimax_m3_vl")
def minimax(name: str) -> Case:
    text = dict(
        num_local_experts=4, num_experts_per_tok=2, dense_intermediate_size=32, shared_intermediate_size=16,
        rotary_dim=4, index_n_heads=2, index_head_dim=8, index_block_size=4, index_topk_blocks=2,
    )
    top = dict(image_token_index=IMAGE, video_token_index=VIDEO, projector_hidden_size=24, merged_hidden_size=128)
    return qwen(name, text, dict(patch_size=4, spatial_merge_size=2, temporal_patch_size=2), top, VIT)


@case("muse_glimmer", "muse_spark")
def muse(name: str) -> Case:
    text = dict(
        sliding_window=16, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, moe_hidden_size=16,
    )
    top = dict(out_hidden_size=64, projector_hidden_size=24)
    if name == "muse_spark":
        top |= dict(audio_token_id=AUDIO, audio_config=dict(
            hidden_sizes=(8, 8), depths=(1, 1), patch_sizes=(4, 2), num_hidden_layers=2, out_hidden_size=32))
    vision = dict(
        patch_size=4, pos_emb_height=8, pos_emb_width=8, patch_temporal=2, merge_size=2, max_position_embeddings=64,
    )
    return qwen(name, text, vision, top, VIT, image=patches(96), video=patches(96, film=True))


@case("paddleocr_vl")
def paddle(name: str) -> Case:
    pixels = patches(0, shape=lambda n: (n, 3, 4, 4))
    vision = dict(patch_size=4, spatial_merge_size=2)
    return qwen(name, dict(rope_parameters=MROPE), vision, None, VIT, image=pixels, video=None)


@case("qwen4_exp")
def qwen4(name: str) -> Case:
    text = dict(
        MOE, shared_expert_intermediate_size=16, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, hc_count=2, hc_lowrank=8, ple_embed_dim=8, ngram_vocab_size_base=50,
        split_ngram_parts=2, heads_per_ngram=2, layer_types=["linear_attention", "full_attention"] * 2,
        rope_parameters={**MROPE, "mrope_interleaved": True}, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8,
        indexer_budget=8, indexer_compress_ratio=2,
    )
    return qwen(name, text, dict(num_position_embeddings=64), video=stamped(96))


@case("video_llama_3")
def vllama(name: str) -> Case:
    image = patches(48, more={"image_merge_sizes": torch.tensor([1])})
    video = patches(48, film=True, more={"video_merge_sizes": torch.tensor([2])})
    return qwen(name, dict(model_type="qwen2"), dict(patch_size=4), None, VIT, image=image, video=video)


@case("inkling2")
def inkling2(name: str) -> Case:
    text = dict(
        unpadded_vocab_size=VOCABULARY, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8,
        sliding_window_size=16, d_rel=4, rel_extent=64, conv_kernel_size=4, moe_intermediate_size=16,
        n_routed_experts=4, num_experts_per_tok=2, n_layers_per_attn_res_block=2,
    )
    vision = dict(
        patch_size=4, spatial_merge_size=2, posemb_grid_size=8, projection_hidden_dim=24, text_hidden_size=32,
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:  # cells of 2 x 2 patches
        tall, wide = ((2, 3), (3, 2))[at % 2]
        return {
            "pixel_values": torch.randn(tall * wide, 8, 8, 3, generator=rng),
            "image_grid_thw": torch.tensor([[1, tall, wide]]),
        }, None

    return qwen(name, text, vision, None, VIT, image=picture, video=None)


# -- square pictures -----------------------------------------------------------------------------------------------


def squares(name: str, text: Picture, vision: Picture, top: Picture | None = None, **more: Any) -> Case:
    """A tower of pictures of one size."""
    config = dict(text_config={**TEXT, **text}, vision_config={**VIT, **vision}, tie_word_embeddings=False)
    return Case({**config, **(top or {})}, **{"image": square(), **more})


@case("aria")
def aria(name: str) -> Case:
    text = dict(moe_num_experts=4, moe_topk=2, num_key_value_heads=4)
    top = dict(projector_patch_to_query_dict={16: 6, 64: 9}, image_token_index=IMAGE)
    return squares(name, text, {}, top)


@case("aya_vision", "cohere2_vision")
def cohere(name: str) -> Case:
    text = dict(model_type="cohere2", sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2)
    return squares(name, text, dict(vision_use_head=False), dict(
        image_token_index=IMAGE, image_token_id=IMAGE, alignment_intermediate_size=48), image=tiles())


@case("deepseek_vl", "janus")
def deepseek(name: str) -> Case:
    vision = dict(mlp_ratio=2.0, projection_dim=32, num_image_tokens=16, image_token_embed_dim=32)
    top = dict(image_token_id=IMAGE)
    if name == "janus":
        top["vq_config"] = dict(
            embed_dim=4, num_embeddings=8, base_channels=32, channel_multiplier=(1, 1), num_patches=4,
            projection_dim=32, num_hidden_layers=1, image_token_embed_dim=32,
        )
    return squares(name, dict(model_type="llama"), vision, top)


SAM = dict(
    hidden_size=16, output_channels=16, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=8,
    window_size=4, global_attn_indexes=(1,), mlp_dim=24, initializer_range=0.2, num_pos_feats=4, scale=32,
    mlp_ratio=2.0,
)


@case("deepseek_vl_hybrid")
def hybrid(name: str) -> Case:
    top = dict(image_token_id=IMAGE, high_res_vision_config={**SAM, "model_type": "sam_vision_model"})
    sides = {"pixel_values": 32, "high_res_pixel_values": 64}
    return squares(
        name, dict(model_type="llama"), dict(model_type="siglip_vision_model"), top,
        image=lambda at, rng: ({k: torch.randn(1, 3, side, side, generator=rng) for k, side in sides.items()}, None),
    )


@case("got_ocr2", "pp_chart2table")
def got(name: str) -> Case:
    top = dict(image_token_index=IMAGE, image_seq_length=4, vision_config=SAM)
    return squares(name, dict(model_type="qwen2"), {}, top, image=square(64))


@case("qianfan_ocr")
def qianfan(name: str) -> Case:
    vision = dict(image_size=(32, 32), patch_size=(8, 8), drop_path_rate=0.0)
    return squares(
        name, dict(model_type="qwen3"), vision, dict(image_token_id=IMAGE, image_seq_length=4), image=tiles(),
    )


@case("ovis2")
def ovis(name: str) -> Case:
    vision = dict(vocab_size=24, num_visual_indicator_tokens=5)
    top = dict(
        image_token_id=IMAGE, visual_indicator_token_ids=(93, 94, 95, 96, 97), hidden_size=32, vocab_size=VOCABULARY,
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        count = (3, 1)[at % 2]
        pixels = torch.randn(count, 3, 32, 32, generator=rng)
        tiles = [*[IMAGE] * 16, 95, *[IMAGE] * 16] if count == 3 else []
        return {"pixel_values": pixels}, [93, *[IMAGE] * 16, 94, *tiles, 97]

    return squares(name, dict(model_type="qwen2"), vision, top, image=picture)


@case("llama4")
def llama4(name: str) -> Case:
    text = dict(intermediate_size_mlp=48, num_local_experts=4, attention_chunk_size=16, no_rope_layers=[1, 1, 1, 0],
                moe_layers=[1, 3], interleave_moe_layer_step=2)
    vision = dict(
        vision_output_dim=24, projector_input_dim=24, projector_output_dim=24, intermediate_size=64,
        pixel_shuffle_ratio=0.5,
    )
    # Transformers 5.24 reads this of what its own decoder answers, which does not have it.
    mend = lambda model: model.language_model.register_forward_hook(  # noqa: E731
        lambda module, arguments, output: output.__dict__.setdefault("image_outputs") and None
    )
    return squares(
        name, text, vision, dict(image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END), image=tiles(),
        mend=mend,
    )


@case("shieldgemma2")
def shield(name: str) -> Case:
    text = dict(layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=16, query_pre_attn_scalar=8)
    return squares(
        name, text, dict(vision_use_head=False),
        dict(mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=START, eoi_token_index=END),
        extra=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
    )


@case("chameleon")
def chameleon(name: str) -> Case:
    vq = dict(
        embed_dim=8, num_embeddings=16, latent_channels=8, resolution=16, base_channels=32, channel_multiplier=(1, 1),
        num_res_blocks=1,
    )
    tokens = {f"IMGIMG{chr(65 + i // 10)}{chr(65 + i % 10)}Z": 20 + i for i in range(16)}
    return Case(
        {**TEXT, "vq_config": vq, "vocabulary_map": {"<image>": IMAGE, **tokens}, "image_token_id": IMAGE}, square(16),
    )


@case("emu3")
def emu(name: str) -> Case:
    vq = dict(
        codebook_size=16, embed_dim=4, latent_channels=4, base_channels=32, channel_multiplier=(1, 1), num_res_blocks=1,
        attn_resolutions=(), hidden_size=32, num_attention_heads=1, temporal_downsample_factor=1,
    )
    tokens = {f"<|visual token {i:06d}|>": 20 + i for i in range(16)}

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        return {"pixel_values": torch.randn(1, 3, 8, 8, generator=rng), "image_sizes": torch.tensor([[8, 8]])}, None

    return Case(
        dict(
            text_config={**TEXT, "attention_dropout": 0.0}, vq_config=vq,
            vocabulary_map={"<image>": IMAGE, "<|extra_200|>": 40, **tokens}, image_token_id=IMAGE,
        ), picture,
    )


@case("fuyu")
def fuyu(name: str) -> Case:
    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        n = (6, 4)[at % 2]
        return {"pixel_values": torch.randn(1, n, 48, generator=rng)}, [IMAGE] * n
    return Case(
        dict(
            text_config={**TEXT, "model_type": "persimmon", "hidden_dropout": 0.0}, image_size=16, patch_size=4,
            image_token_id=IMAGE,
        ), picture, one=True,
    )


# -- tiles, pooled tokens, several towers --------------------------------------------------------------------------


@case("lfm2_vl")
def lfm2(name: str) -> Case:
    text = dict(
        model_type="lfm2", full_attn_idxs=[1, 3], conv_L_cache=3, block_multiple_of=8,
        layer_types=["conv", "full_attention"] * 2,
    )
    vision = dict(patch_size=4, num_patches=16, vision_use_head=False)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        rows, columns = ((4, 6), (6, 4))[at % 2]
        mask = torch.zeros(1, 32, dtype=torch.long)
        mask[:, : rows * columns] = 1
        return {
            "pixel_values": torch.randn(1, 32, 48, generator=rng), "spatial_shapes": torch.tensor([[rows, columns]]),
            "pixel_attention_mask": mask,
        }, None

    return squares(name, text, vision, dict(image_token_id=IMAGE, projector_hidden_size=32), image=picture)


@case("lighton_ocr", "mistral_large4")
def pixtral(name: str) -> Case:
    text = dict(model_type="qwen3")
    if name == "mistral_large4":
        text = dict(
            MOE, num_key_value_heads=4, kv_lora_rank=16, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=8,
            n_group=1, topk_group=1, index_topk=64, index_head_dim=8, index_n_heads=16, head_dim=4,
            first_k_dense_replace=1, rope_parameters=dict(rope_type="default", rope_theta=1e4), q_lora_rank=16,
        )
    vision = dict(patch_size=4, image_size=64, head_dim=8)
    top = dict(image_token_id=IMAGE, image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        tall, wide = ((16, 24), (24, 16))[at % 2]
        pixels = torch.zeros(1, 3, 24, 24)
        pixels[:, :, :tall, :wide] = torch.randn(1, 3, tall, wide, generator=rng)
        ids = [one for row in range(tall // 8) for one in (*[IMAGE] * (wide // 8), 93)]
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[tall, wide]])}, [*ids[:-1], 94]

    return squares(name, text, vision, top, image=picture)


@case("minicpm_ocr", "minicpmv4_6", "minicpmv4_7")
def minicpm(name: str) -> Case:
    text = dict(
        model_type="qwen3_5_text", linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
        linear_num_value_heads=4, layer_types=["linear_attention", "full_attention"] * 2,
        rope_parameters=dict(
            rope_type="default", rope_theta=1e4, mrope_section=[2, 1, 1], mrope_interleaved=True,
            partial_rotary_factor=1.0,
        ),
    )
    vision = dict(patch_size=4, image_size=64, insert_layer_id=1, num_hidden_layers=3)
    top = dict(image_token_id=IMAGE, video_token_id=VIDEO, insert_layer_id=1, image_size=64, patch_size=4,
               image_start_id=93, image_end_id=94, slice_start_id=95, slice_end_id=96, newline_id=97)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        rows, columns = ((8, 12), (4, 8))[at % 2]
        return {
            "pixel_values": torch.randn(1, 3, 4, rows * columns * 4, generator=rng),
            "target_sizes": torch.tensor([[rows, columns]], dtype=torch.int32),
        }, None

    def film(at: int, rng: Rng) -> tuple[Picture, Any]:
        return {
            "pixel_values_videos": torch.randn(1, 3, 4, 3 * 32 * 4, generator=rng),
            "target_sizes_videos": torch.tensor([[4, 8]] * 3, dtype=torch.int32),
        }, [93, *[VIDEO] * (8 if name == "minicpm_ocr" else 2), 94] * 3

    along = lambda parts: torch.cat(parts, dim=-1)  # noqa: E731
    return squares(
        name, text, vision, top, image=picture, video=film, join={"pixel_values": along, "pixel_values_videos": along},
    )


@case("step3p7")
def step(name: str) -> Case:
    text = dict(
        MOE, share_expert_dim=16, num_sliding_attention_heads=4, sliding_window=16, query_pre_attn_scalar=8,
        layer_types=["full_attention", "sliding_attention"] * 2, mlp_layer_types=["dense", "sparse"] * 2,
        rope_parameters={k: dict(rope_type="default", rope_theta=1e4) for k in ("full_attention", "sliding_attention")},
    )
    vision = dict(mlp_ratio=1.5, image_size=64, max_position_embeddings=64)

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        count = (2, 0)[at % 2]
        tensors = {"pixel_values": torch.randn(1, 3, 64, 64, generator=rng), "num_local_patches": [count]}
        if count:
            tensors["pixel_values_local"] = torch.randn(count, 3, 64, 64, generator=rng)
        return tensors, None

    return squares(name, text, vision, dict(image_token_id=IMAGE), image=picture)


@case("deepseek_ocr2", "unlimited_ocr")
def ocr2(name: str) -> Case:
    text = dict(
        n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, n_group=1, topk_group=1,
        mlp_layer_types=["dense", "sparse", "sparse", "sparse"], num_key_value_heads=4,
    )
    if name == "unlimited_ocr":
        text["sliding_window"] = 16
    vision = dict(
        sam_config={**SAM, "downsample_channels": [16, 16], "patch_size": 4},
        encoder_config={
            **VIT, "num_key_value_heads": 2, "vocab_size": 10, "head_dim": 8,
            "patch_size": 16 if name != "deepseek_ocr2" else 8, "image_size": 64,
        },
    )
    local = 48 if name == "deepseek_ocr2" else 64

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        count = 2
        tensors = {"pixel_values": torch.randn(1, 3, 64, 64, generator=rng), "num_local_patches": [count],
                   "pixel_values_local": torch.randn(count, 3, local, local, generator=rng)}
        if name == "unlimited_ocr":
            tensors["patches_grid"] = [[2, 1]]
        return tensors, None

    return Case(dict(text_config={**TEXT, **text}, vision_config=vision, image_token_id=IMAGE), picture)


@case("granite4_vision")
def granite4(name: str) -> Case:
    text = dict(embedding_multiplier=1.0)
    vision = dict(model_type="siglip_vision_model", vision_use_head=False, hidden_size=64)
    top = dict(
        image_token_index=IMAGE, image_grid_pinpoints=[[32, 64], [64, 32]], image_seq_length=4, downsample_rate="1/2",
        deepstack_layer_map=[[-1, 0], [-2, 2]], spatial_vision_layer=-1, spatial_target_layers=[1, 3],
        vision_feature_select_strategy="full",
        qformer_config=dict(
            model_type="blip_2_qformer", hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, encoder_hidden_size=16,
        ),
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        return {
            "pixel_values": torch.randn(1, 3, 3, 32, 32, generator=rng),
            "image_sizes": torch.tensor([((30, 60), (64, 30))[at % 2]]),
        }, None

    return squares(name, text, vision, top, image=picture)


@case("granite_docling")
def docling(name: str) -> Case:
    vision = dict(patch_size=4, out_hidden_size=32, scale_factor=2, deepstack_visual_indexes=[0, 1])

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        return {
            "pixel_values": torch.randn(1, 2, 3, 32, 32, generator=rng),
            "pixel_attention_mask": torch.ones(1, 2, dtype=torch.bool),
        }, [93, *[IMAGE] * 16, 93, *[IMAGE] * 16, 93]

    return squares(name, dict(attention_multiplier=0.35), vision, dict(image_token_id=IMAGE), image=picture, one=True)


@case("idefics2")
def idefics2(name: str) -> Case:
    perceiver = dict(
        hidden_size=32, resampler_n_latents=4, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8,
        num_key_value_heads=1,
    )
    return squares(
        name, dict(model_type="mistral", sliding_window=None), {},
        dict(perceiver_config=perceiver, image_token_id=IMAGE), image=lambda at,
        rng: ({"pixel_values": torch.randn(1, 1, 3, 32, 32, generator=rng)}, [93, *[IMAGE] * 4, 93]), one=True,
    )


@case("gemma4_unified", "gemma4_unified_shared")
def unified(name: str) -> Case:
    text = dict(
        layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=16,
        num_kv_shared_layers=2 if name.endswith("shared") else 0, global_head_dim=8, num_global_key_value_heads=2,
    )
    vision = dict(
        patch_size=4, model_patch_size=4, mm_embed_dim=16, mm_posemb_size=16, num_soft_tokens=24, output_proj_dims=16,
        pooling_kernel_size=1,
    )

    def make_one(prefix: str, film: bool) -> Callable[..., Any]:
        def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
            tall, wide = ((3, 4), (4, 3))[at % 2]
            frames = 3 if film else 1
            y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
            places = torch.full((frames, 16, 2), -1)
            places[:, : tall * wide] = torch.stack((x, y), dim=-1).flatten(0, 1)
            pixels = torch.randn(frames, 16, 48, generator=rng)
            if film:
                return {
                    "pixel_values_videos": pixels, "video_position_ids": places,
                    "num_frames_per_video": torch.tensor([3]),
                }, [95, *[VIDEO] * 12, 6, *[VIDEO] * 12, 6, *[VIDEO] * 12, 96]
            return {"pixel_values": pixels, "image_position_ids": places}, [93, *[IMAGE] * (tall * wide), 94]
        return picture

    top = dict(
        image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO, boi_token_id=START, eoi_token_id=END,
        boa_token_id=97, eoa_token_index=98,
    )
    return Case(
        dict(text_config={**TEXT, **text}, vision_config=vision, **top), make_one("", False), make_one("", True),
        type="gemma4_unified",
    )


@case("inkling_mm_model")
def inkling(name: str) -> Case:
    text = dict(
        swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=8, sliding_window_size=16, d_rel=4,
        rel_extent=64, moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1,
        unpadded_vocab_size=VOCABULARY, layer_types=["hybrid_sliding", "hybrid"] * 2,
    )
    audio = dict(n_mel_bins=8, mel_vocab_size=8, text_hidden_size=32)
    vision = dict(text_hidden_size=32, patch_size=8, hidden_size=16, n_layers=2, num_attention_heads=2)
    return Case(
        dict(
            text_config={**TEXT, **text}, audio_config=audio, vision_config=vision, image_token_id=IMAGE,
            audio_token_id=AUDIO, image_bos_token_id=START, audio_bos_token_id=95,
        ), lambda at, rng: ({"pixel_values": torch.randn((12, 6)[at % 2], 2, 8, 8, 3, generator=rng)}, None),
    )


@case("nemotron_h_omni")
def nemotron(name: str) -> Case:
    text = dict(
        layers_block_type=["linear_attention", "full_attention", "mlp", "full_attention"], ssm_state_size=8,
        mamba_num_heads=4, mamba_head_dim=8, n_groups=2, chunk_size=8, n_routed_experts=4, moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16, use_mamba_kernels=False, expand=1,
    )
    del_ = {k: v for k, v in TEXT.items() if k != "num_hidden_layers"}
    vision = dict(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=8, image_size=32, max_img_size=64,
        num_cls_tokens=1, num_registers=1, mlp_ratio=2.0, summary_idxs=[0], video_temporal_patch_size=2, patch_dim=192,
        video_patch_dim=384,
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:  # its videos raise in transformers 5.23
        pixels, grids = torch.randn(24, 192, generator=rng), torch.tensor([((4, 6), (6, 4))[at % 2]])
        return {"pixel_values": pixels, "image_grid_hw": grids}, None

    return Case(
        dict(
            text_config={**del_, **text}, vision_config=vision, vision_hidden_size=16, projector_hidden_size=24,
            image_token_id=IMAGE, video_token_id=VIDEO, audio_token_id=AUDIO, force_image_size=32,
        ), picture,
    )


@case("molmo2")
def molmo(name: str) -> Case:
    text = dict(additional_vocab_size=8)
    vision = dict(num_key_value_heads=2, head_dim=8, image_size=[32, 32], num_position_embeddings=16)
    adapter = dict(
        vision_feature_layer=[1, 0], hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8,
        intermediate_size=24, text_hidden_size=32,
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:  # two crops: the whole, and a crop; 2 x 2 patches a token
        crops = (2, 1)[at % 2]
        base = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
        pooling = torch.cat([base + 16 * crop for crop in range(crops)])
        grids = torch.tensor([[2, 2, 2 if crops == 2 else 0, 2 if crops == 2 else 0]])
        return {
            "pixel_values": torch.randn(crops, 16, 192, generator=rng), "image_token_pooling": pooling,
            "image_grids": grids, "image_num_crops": torch.tensor([crops]),
        }, [93, *[IMAGE] * 4, 94, *([97, *[IMAGE] * 4, 94] if crops == 2 else [])]

    def pools(parts: list[Tensor]) -> Tensor:
        shifted, crops = [], 0
        for part in parts:
            shifted.append(part + 16 * crops)
            crops += len(part) // 4
        return torch.cat(shifted)

    def film(at: int, rng: Rng) -> tuple[Picture, Any]:
        base = torch.arange(16).view(2, 2, 2, 2).transpose(1, 2).reshape(4, 4)
        return {
            "pixel_values_videos": torch.randn(3, 16, 192, generator=rng),
            "video_token_pooling": torch.cat([base + 16 * f for f in range(3)]),
            "video_grids": torch.tensor([[3, 2, 2]]),
        }, [one for _ in range(3) for one in (95, *[IMAGE] * 4, 96)]

    return squares(
        name, text, vision,
        dict(
            adapter_config=adapter, image_patch_id=IMAGE, image_start_token_id=93, image_end_token_id=94,
            frame_start_token_id=95, frame_end_token_id=96, low_res_image_start_token_id=97,
        ), image=picture, video=film, apart=True, join={"image_token_pooling": pools, "video_token_pooling": pools},
    )


@case("phi4_multimodal")
def phi4(name: str) -> Case:
    vision = {**VIT, "crop_size": 32, "image_token_id": IMAGE, "num_hidden_layers": 3}
    audio = dict(
        hidden_size=16, intermediate_size=16, num_blocks=1, num_attention_heads=2, ext_pw_out_channel=16,
        depthwise_separable_out_channel=16, nemo_conv_channels=8, input_size=16, audio_token_id=AUDIO,
        bias_max_distance=8, time_reduction=2,
    )

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        tall, wide = ((1, 2), (2, 1))[at % 2]
        mask = torch.ones(1, 3, 4, 4, dtype=torch.long)
        tokens = tall * 2 * (wide * 2 + 1) + 1 + 2 * 3
        return {
            "image_pixel_values": torch.randn(1, 3, 3, 32, 32, generator=rng),
            "image_sizes": torch.tensor([[tall * 32, wide * 32]]), "image_attention_mask": mask,
        }, [IMAGE] * tokens

    text = {k: v for k, v in TEXT.items() if k not in ("head_dim",)}
    return Case(
        dict(
            text, vision_config=vision, audio_config=audio, original_max_position_embeddings=512, sliding_window=None,
            rope_parameters=dict(rope_type="default", rope_theta=1e4),
        ), picture,
    )


@case("mistral4")
def mistral4(name: str) -> Case:
    text = dict(
        MOE, model_type="mistral4", num_key_value_heads=4, kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, n_group=1, topk_group=1, head_dim=8,
    )
    del text["num_experts"]
    case = pixtral("lighton_ocr")
    case.config["text_config"] = {**TEXT, **text}
    case.config["vision_config"]["model_type"] = "pixtral"
    case.type, case.kind = "mistral3", "Mistral3ForConditionalGeneration"
    return case


@case("fast_vlm")
def fast(name: str) -> Case:
    vision = dict(
        model_type="timm_wrapper", architecture="fastvit_t8", do_pooling=False, hidden_size=64,
        model_args=dict(embed_dims=(8, 8, 16, 32), layers=(1, 1, 1, 1)),
    )
    return Case(
        dict(
            text_config={**TEXT, "model_type": "qwen2"}, vision_config=vision, image_token_id=IMAGE,
            image_token_index=IMAGE, tie_word_embeddings=False,
        ), square(64),
    )


@case("perception_lm")
def perception(name: str) -> Case:
    vision = dict(
        model_type="timm_wrapper", architecture="vit_pe_core_tiny_patch16_384", do_pooling=False,
        model_args=dict(
            embed_dim=32, depth=2, num_heads=2, img_size=(32, 32), patch_size=8, global_pool="",
            use_post_transformer_norm=False,
        ),
    )
    return Case(
        dict(
            text_config={**TEXT, "model_type": "llama"}, vision_config=vision, image_token_id=IMAGE,
            video_token_id=VIDEO, projector_pooling_ratio=2, tie_word_embeddings=False,
        ),
        lambda at, rng: ({"pixel_values": torch.randn(1, 3, 3, 32, 32, generator=rng)}, [IMAGE] * 12),
        lambda at, rng: ({"pixel_values_videos": torch.randn(1, 2, 3, 32, 32, generator=rng)}, [VIDEO] * 8),
    )


@case("gemma3n")
def gemma3n(name: str) -> Case:
    text = dict(
        layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=16, num_kv_shared_layers=2,
        laurel_rank=4, altup_num_inputs=2, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8,
        activation_sparsity_pattern=[0.0] * 4,
    )
    audio = dict(
        vocab_offset=98, vocab_size=2, input_feat_size=8, hidden_size=16, conf_num_attention_heads=2,
        conf_num_hidden_layers=1, conf_attention_chunk_size=4, conf_attention_context_left=5,
        sscp_conv_channel_size=(4, 4),
    )
    vision = dict(architecture="resnet10t", vocab_size=8, vocab_offset=90, hidden_size=512)
    return Case(
        dict(
            text_config={**TEXT, **text}, audio_config=audio, vision_config=vision, vision_soft_tokens_per_image=4,
            image_token_id=IMAGE, boi_token_id=93, eoi_token_id=94, audio_token_id=99, tie_word_embeddings=True,
        ), square(64),
    )


# -- since 5.24 ----------------------------------------------------------------------------------------------------


@case("hy_v4_vl")
def hunyuan4(name: str) -> Case:
    text = dict(
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, kv_lora_rank=16, q_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, index_topk=64, index_head_dim=8, index_n_heads=16,
        hc_mult=2, indexer_types=["full", "shared"] * 2, rope_parameters=MROPE,
    )
    vision = dict(patch_size=4, num_key_value_heads=2, out_hidden_size=32, spatial_merge_size=2, max_image_size=64)
    return qwen(name, text, vision, None, VIT)


@case("apertus1p5")
def apertus(name: str) -> Case:
    vision = dict(
        codebook_size=16, embed_dim=8, latent_channels=8, base_channels=32, channel_multiplier=(1, 1), num_res_blocks=1,
        attn_resolutions=(), resolution=16,
    )
    audio = dict(
        model_type="wavtokenizer_encoder", num_filters=2, upsampling_ratios=(2, 2), num_lstm_layers=1, hidden_size=8,
        codebook_size=4, codebook_dim=8,
    )
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}

    def picture(at: int, rng: Rng) -> tuple[Picture, Any]:
        tall, wide = ((8, 12), (12, 8))[at % 2]
        pixels = torch.zeros(1, 3, 12, 12)
        pixels[:, :, :tall, :wide] = torch.randn(1, 3, tall, wide, generator=rng)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([[tall, wide]])}, None

    tokens = dict(image_token_id=IMAGE, audio_token_id=AUDIO, image_token_offset=20, audio_token_offset=36)
    return Case(dict(text_config=text, vision_config=vision, audio_config=audio, **tokens), picture)


@case("inkling2_loop")
def loop(name: str) -> Case:
    case = inkling2(name)
    case.config["text_config"] |= dict(
        n_layers_per_attn_res_block=1, loop_layer_index_start=1, loop_layer_index_end=3, loop_num_passes=2,
        loop_gate_rank=8, layer_types=["hybrid_sliding", "hybrid"] * 2,
    )
    return case


# fmt: on
