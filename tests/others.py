"""Of every family here another tiny model: other depths, heads and widths, towers, windows, experts and token ids.

A new family is tested without an entry, and better with one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.families.test_glm4v import TOKENS as GLM
from tests.models import TINY
from tests.tiny import (
    CLIP,
    IMAGE,
    TEXT,
    VIDEO,
    VISION_START,
    Frames,
    Picture,
    Tiny,
    after_start,
    qwen_types,
)

__all__ = ["OTHERS"]

LOCAL, LINEAR, FULL = "sliding_attention", "linear_attention", "full_attention"
QWEN = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": 94,
}  # fmt: skip


def text(depth: int, heads: int, keys: int, width: int, **more: Any) -> dict[str, Any]:
    """Settings of a decoder: layers, heads, key heads, width."""
    sizes = {"num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": keys}
    return {**TEXT, **sizes, "hidden_size": width, "intermediate_size": 33, "vocab_size": 101, **more}


def tower(depth: int, heads: int, size: int, patch: int) -> dict[str, Any]:
    """Settings of a tower for pictures of `size` pixels."""
    sizes = {"num_hidden_layers": depth, "num_attention_heads": heads, "hidden_size": 6 * heads}
    return {**CLIP, **sizes, "image_size": size, "patch_size": patch}


def siglip(depth: int, heads: int, size: int, patch: int) -> Any:
    known = tower(depth, heads, size, patch)
    del known["projection_dim"], known["initializer_range"]
    return transformers.SiglipVisionConfig(**known, vision_use_head=False)


def mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e5, "mrope_section": list(sections), **more}


def behind(window: Callable[[int], int | None]) -> Callable[[int, Tensor, Tensor, int], Tensor]:
    """Up to itself, no further back than the layer's window."""

    def sees(layer: int, columns: Tensor, picture: Tensor, prompt: int) -> Tensor:
        row, key, reach = columns[:, None], columns, window(layer)
        return (key <= row) if reach is None else (key <= row) & (row - key < reach)

    return sees


# -- pictures ------------------------------------------------------------------------------------------------


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of several shapes, some of which no pinpoint fits; padded to ten crops."""
    side = config.vision_config.image_size
    shapes = torch.tensor([[0.7, 2.2], [0.2, 2.8], [2.9, 2.6], [1.0, 1.0]])[torch.arange(count) % 4]
    pixels, sizes = torch.randn(count, 10, 3, side, side, generator=rng), (shapes * side).long()
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


def frames(number: int) -> Callable[[Any, int, torch.Generator], list[Picture]]:
    """Videos of so many frames."""

    def make(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
        side = config.vision_config.image_size
        return [{"pixel_values_videos": one[None]} for one in torch.randn(count, number, 3, side, side, generator=rng)]

    return make


def grids(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Patches of pictures of several sizes, one token alone among them."""
    return _patches(config, [[1, 3, 2], [1, 1, 1], [1, 2, 5]], count, rng, "pixel_values", "image_grid_thw")


def clips(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Patches of videos, four temporal ones and one."""
    return _patches(config, [[4, 1, 3], [1, 2, 2]], count, rng, "pixel_values_videos", "video_grid_thw")


def _patches(config: Any, sizes: list[list[int]], count: int, rng: torch.Generator, *names: str) -> list[Picture]:
    """Of so many temporal patches and rows and columns of tokens."""
    vision, found = config.vision_config, []
    for index in range(count):
        times, *sides = sizes[index % len(sizes)]
        grid = torch.tensor([times, *(side * vision.spatial_merge_size for side in sides)])
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        found.append(dict(zip(names, (torch.randn(int(grid.prod()), width, generator=rng), grid[None]), strict=True)))
    return found


# -- models --------------------------------------------------------------------------------------------------


def llava() -> Any:
    decoder = transformers.Qwen2Config(**text(7, 6, 3, 36))
    return transformers.LlavaConfig(
        text_config=decoder, vision_config=siglip(2, 3, 36, 9), image_token_index=VIDEO, vision_feature_layer=-1,
        vision_feature_select_strategy="full", multimodal_projector_bias=False,
    )  # fmt: skip


def llava_next() -> Any:
    return transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**text(5, 3, 3, 48), head_dim=10, sliding_window=17),
        vision_config=transformers.CLIPVisionConfig(**tower(4, 1, 36, 9)), image_token_index=IMAGE,
        vision_feature_layer=[-2, 1], image_grid_pinpoints=[[72, 108], [108, 72], [36, 36], [36, 144]],
    )  # fmt: skip


def llava_next_video() -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config=transformers.Qwen3Config(**text(2, 4, 1, 24), head_dim=12), vision_config=siglip(3, 2, 49, 7),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=1, vision_feature_select_strategy="full",
        image_grid_pinpoints=[[49, 98], [98, 98]], spatial_pool_stride=3, spatial_pool_mode="conv",
    )  # fmt: skip


def llava_onevision() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**text(9, 2, 2, 28)), vision_config=siglip(4, 1, 42, 14),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-2, vision_aspect_ratio="anyres_max_2",
        image_grid_pinpoints=[[42, 126], [126, 126], [84, 42]],
    )  # fmt: skip


def video_llava() -> Any:
    return transformers.VideoLlavaConfig(
        text_config=transformers.LlamaConfig(**text(8, 1, 1, 20), head_dim=14, attention_bias=True),
        vision_config=transformers.CLIPVisionConfig(**tower(2, 3, 28, 7)), image_token_index=IMAGE,
        video_token_index=VIDEO, vision_feature_layer=[1, -1],
    )  # fmt: skip


def vipllava() -> Any:
    return transformers.VipLlavaConfig(
        text_config=transformers.LlamaConfig(**text(2, 5, 1, 40)),
        vision_config=transformers.CLIPVisionConfig(**tower(4, 2, 30, 10)), image_token_index=IMAGE,
        vision_feature_layer=(-1, 1, -3),
    )  # fmt: skip


def paligemma() -> Any:
    return transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**text(4, 3, 1, 20), head_dim=6), vision_config=siglip(2, 3, 40, 10),
        image_token_index=IMAGE, projection_dim=20, hidden_size=20,
    )  # fmt: skip


def mistral3() -> Any:
    vision = transformers.PixtralVisionConfig(
        hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=3, patch_size=6, image_size=90,
        initializer_range=0.2,
    )  # fmt: skip
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**text(7, 5, 1, 30), head_dim=6, sliding_window=None),
        vision_config=vision, image_token_index=IMAGE, spatial_merge_size=3, vision_feature_layer=-2,
        multimodal_projector_bias=True,
    )  # fmt: skip


def any_shape(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of several sizes on grounds of one."""
    sizes = torch.tensor([[36, 72], [18, 54], [90, 36]])[torch.arange(count) % 3]
    pixels = torch.randn(count, 3, 90, 90, generator=rng)
    for one, (height, width) in zip(pixels, sizes.tolist(), strict=True):
        one[:, height:], one[:, :, width:] = 0, 0
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


def rows(picture: Picture, length: int) -> Tensor:
    """A break behind each row, an end behind the last."""
    height, width = (picture["image_sizes"][0] // 18).tolist()
    return torch.tensor([*([*[IMAGE] * width, 93] * height)[:-1], 94])


def gemma3() -> Any:
    """Five local layers to a global one, as released."""
    known = {"head_dim": 10, "query_pre_attn_scalar": 7, "sliding_window": 9}
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text(7, 3, 3, 45), **known), vision_config=siglip(2, 1, 42, 7),
        image_token_index=IMAGE, mm_tokens_per_image=4,
    )  # fmt: skip


def gemma3_window(layer: int) -> int | None:
    return None if layer == 5 else 9


def gemma3_sees(layer: int, columns: Tensor, picture: Tensor, prompt: int) -> Tensor:
    row, key, reach = columns[:, None], columns, gemma3_window(layer)
    seen = (key <= row) | ((picture[:, None] == picture) & (picture >= 0))
    return seen if reach is None else seen & (row - key < reach)


def gemma4() -> Any:
    known = {
        "head_dim": 12, "global_head_dim": 8, "num_global_key_value_heads": 2, "attention_k_eq_v": False,
        "sliding_window": 6, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": None,
        "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 20,
    }  # fmt: skip
    return transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**text(4, 2, 2, 28), **known, layer_types=[FULL, LOCAL, LOCAL, FULL]),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
            head_dim=8, patch_size=2, pooling_kernel_size=3, position_embedding_size=16, initializer_range=0.2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip


def gemma4_window(layer: int) -> int | None:
    return 6 if layer in (1, 2) else None


def placed(sizes: list[tuple[int, int]], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Patches of pictures of so many rows and columns of tokens, padded, and where they are."""
    pixels, places = torch.zeros(len(sizes), 108, 12), torch.full((len(sizes), 108, 2), -1)
    for index, (rows, columns) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(3 * rows), torch.arange(3 * columns), indexing="ij")
        places[index, : x.numel()] = torch.stack((x, y), dim=-1).view(-1, 2)
        pixels[index, : x.numel()] = torch.rand(x.numel(), 12, generator=rng)
    return pixels, places


def gemma4_pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    made = [placed([[(3, 4), (1, 1), (2, 5)][index % 3]], rng) for index in range(count)]
    return [{"pixel_values": pixels, "image_position_ids": places} for pixels, places in made]


def gemma4_videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Of four frames."""
    made = [placed([(1, 3)] * 4, rng) for _ in range(count)]
    names = "pixel_values_videos", "video_position_ids", "num_frames_per_video"
    return [dict(zip(names, (*pair, torch.tensor([4])), strict=True)) for pair in made]


def qwen2_vl() -> Any:
    """Ids of images and videos, starts and ends the other way round."""
    return transformers.Qwen2VLConfig(
        text_config=text(7, 3, 1, 24, rope_parameters=mrope(1, 2, 1)),
        vision_config={
            "depth": 3, "embed_dim": 24, "hidden_size": 24, "num_heads": 3, "mlp_ratio": 3, "patch_size": 6,
            "spatial_merge_size": 3, "temporal_patch_size": 1,
        },
        image_token_id=VIDEO, video_token_id=IMAGE, vision_start_token_id=94, vision_end_token_id=93,
    )  # fmt: skip


def turned(ids: Tensor) -> Tensor:
    """Ids of images and videos, starts and ends the other way round."""
    known = {IMAGE: VIDEO, VIDEO: IMAGE, 93: 94, 94: 93}
    return torch.tensor([known.get(one, one) for one in ids.flatten().tolist()]).view_as(ids)


def qwen2_5_vl() -> Any:
    """Windows of 2 x 2 tokens, a patch each, and one block of four that looks at all."""
    return transformers.Qwen2_5_VLConfig(
        text_config=text(5, 2, 2, 24, rope_parameters=mrope(2, 3, 1)),
        vision_config={
            "depth": 4, "hidden_size": 8, "out_hidden_size": 24, "num_heads": 1, "intermediate_size": 20,
            "fullatt_block_indexes": [1], "window_size": 12, "patch_size": 6, "spatial_merge_size": 1,
            "tokens_per_second": 4,
        },
        **QWEN,
    )  # fmt: skip


def clips_in_time(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    return [{**one, "second_per_grid_ts": torch.tensor([0.5])} for one in clips(config, count, rng)]


def qwen3_vision(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 4, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "num_position_embeddings": 25, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def qwen3_vl() -> Any:
    """The second layer but one of the tower alone is added, to the first of the decoder."""
    rope = mrope(3, 2, 1, mrope_interleaved=True)
    return transformers.Qwen3VLConfig(
        text_config=text(7, 3, 3, 20, head_dim=12, rope_parameters=rope),
        vision_config=qwen3_vision(20, 3, deepstack_visual_indexes=[2]), **QWEN,
    )  # fmt: skip


def qwen3_vl_moe() -> Any:
    experts = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "decoder_sparse_step": 2}
    rope = mrope(2, 1, 1, mrope_interleaved=True)
    return transformers.Qwen3VLMoeConfig(
        text_config=text(3, 4, 2, 28, head_dim=8, rope_parameters=rope, **experts),
        vision_config=qwen3_vision(28, 1, deepstack_visual_indexes=[0, 3]), **QWEN,
    )  # fmt: skip


def states(depth: int, heads: int, keys: int, width: int, **more: Any) -> dict[str, Any]:
    """Settings of a decoder with states: three key heads, six value heads, all of other sizes."""
    known = {
        "linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 4, "linear_value_head_dim": 10,
        "linear_conv_kernel_dim": 2, "head_dim": 24, **more,
    }  # fmt: skip
    return text(depth, heads, keys, width, **known)


def qwen3_5() -> Any:
    rope = mrope(1, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.25)
    kinds = [LINEAR, LINEAR, FULL, LINEAR, FULL, FULL, LINEAR]
    return transformers.Qwen3_5Config(
        text_config=states(7, 3, 1, 20, rope_parameters=rope, layer_types=kinds), vision_config=qwen3_vision(20, 3),
        **QWEN,
    )  # fmt: skip


def qwen3_5_moe() -> Any:
    experts = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 12}
    rope = mrope(4, 4, 4, mrope_interleaved=True, partial_rotary_factor=1.0)
    more = {**experts, "shared_expert_intermediate_size": 8, "rope_parameters": rope}
    return transformers.Qwen3_5MoeConfig(
        text_config=states(4, 2, 2, 28, **more, layer_types=[FULL, LINEAR, FULL, FULL]),
        vision_config=qwen3_vision(28, 1), **QWEN,
    )  # fmt: skip


def glm_vision(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 3, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "image_size": 30, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def glm4v() -> Any:
    rope = mrope(1, 1, 0, partial_rotary_factor=0.5)
    return transformers.Glm4vConfig(
        text_config=text(7, 3, 3, 24, rope_parameters=rope), vision_config=glm_vision(24, 3), **GLM
    )


def glm4v_moe() -> Any:
    experts = {
        "n_routed_experts": 3, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "head_dim": 12,
    }  # fmt: skip
    rope = mrope(3, 2, 1, partial_rotary_factor=1.0)
    return transformers.Glm4vMoeConfig(
        text_config=text(3, 3, 1, 20, **experts, rope_parameters=rope), vision_config=glm_vision(20, 1), **GLM
    )


def glm46v() -> Any:
    """With a dense decoder."""
    known = {"model_type": "glm4v_text", "rope_parameters": mrope(2, 1, 1, partial_rotary_factor=1.0)}
    return transformers.Glm46VConfig(
        text_config=text(5, 4, 2, 32, **known), vision_config=glm_vision(32, 2, model_type="glm4v_vision"), **GLM
    )


def internvl() -> Any:
    """Four by four patches a token."""
    vision = {
        **tower(4, 3, 48, 6), "patch_size": [6, 6], "image_size": [48, 48], "use_qk_norm": True,
        "norm_type": "rms_norm", "attention_bias": True,
    }  # fmt: skip
    del vision["projection_dim"]
    return transformers.InternVLConfig(
        text_config=transformers.LlamaConfig(**text(7, 4, 1, 20), head_dim=8), vision_config=vision,
        image_token_id=IMAGE, image_seq_length=4, downsample_ratio=0.25, vision_feature_layer=-2,
        tie_word_embeddings=False,
    )  # fmt: skip


def internvl_tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A single tile, six and the whole, one and the whole."""
    return [{"pixel_values": torch.randn([1, 7, 2][at % 3], 3, 48, 48, generator=rng)} for at in range(count)]


def internvl_frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    return [Frames(pixel_values=torch.randn(4, 3, 48, 48, generator=rng)) for _ in range(count)]


def wrapped(picture: Picture, length: int) -> Tensor:
    if isinstance(picture, Frames):
        return torch.tensor([5, 6, 7, 93, *[IMAGE] * 4, 94] * (length // 4))
    return torch.tensor([93, *[IMAGE] * length, 94])


def smolvlm() -> Any:
    """Three by three patches a token, two by two tokens a tile."""
    return transformers.SmolVLMConfig(
        text_config=transformers.MistralConfig(**text(5, 6, 2, 24), head_dim=6, sliding_window=None),
        vision_config=tower(2, 2, 36, 6), image_token_id=IMAGE, scale_factor=3,
    )  # fmt: skip


def idefics3() -> Any:
    """A patch a token, two by two tokens a tile."""
    return transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**text(3, 2, 2, 36)), vision_config=tower(4, 1, 20, 10),
        image_token_id=IMAGE, scale_factor=1,
    )  # fmt: skip


def few_tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A single tile, six and the whole; padded with empty tiles."""
    return [{"pixel_values": one} for one in _padded(config, count, (1, 7), rng)]


def few_frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A tile each; padded as `few_tiles`."""
    return [Frames(pixel_values=one) for one in _padded(config, count, (4, 1), rng)]


def _padded(config: Any, count: int, real: tuple[int, int], rng: torch.Generator) -> list[Tensor]:
    side = config.vision_config.image_size
    pixels = torch.randn(count, 7, 3, side, side, generator=rng)
    for index, one in enumerate(pixels):
        one[real[index % 2] :] = 0
    return list(pixels[:, None])


def tagged(picture: Picture, length: int) -> Tensor:
    """A tag before each tile, a newline behind each row, the tag of the whole; text before each frame of a video."""
    if isinstance(picture, Frames):
        return torch.tensor([5, 6, 93, 94, *[IMAGE] * 4, 93] * (length // 4))
    parts = [93, 94, *[IMAGE] * 4, 93]
    for tile in reversed(range(length // 4 - 1)):
        parts = [93, 10 + tile, *[IMAGE] * 4, *[95] * (tile % 3 == 2), *parts]
    return torch.tensor(parts)


def _other(family: str, config: Callable[[], Any], **changed: Any) -> Tiny:
    return replace(TINY[family], config=config, **changed)


OTHERS = {
    "llava": _other("llava", llava, ids=lambda picture, length: torch.full((length,), VIDEO)),
    "llava_next": _other(
        "llava_next", llava_next, pictures=tiles, window=lambda layer: 17, sees=behind(lambda layer: 17)
    ),
    "llava_next_video": _other("llava_next_video", llava_next_video, pictures=tiles, videos=frames(2)),
    "llava_onevision": _other("llava_onevision", llava_onevision, pictures=tiles, videos=frames(4)),
    "video_llava": _other("video_llava", video_llava, videos=frames(2)),
    "vipllava": _other("vipllava", vipllava),
    "paligemma": _other("paligemma", paligemma),
    "mistral3": _other("mistral3", mistral3, pictures=any_shape, ids=rows),
    "gemma3": _other("gemma3", gemma3, window=gemma3_window, sees=gemma3_sees),
    "gemma4": _other(
        "gemma4", gemma4, pictures=gemma4_pictures, videos=gemma4_videos, window=gemma4_window,
        sees=behind(gemma4_window),
    ),
    "qwen2_vl": _other(
        "qwen2_vl", qwen2_vl, pictures=grids, videos=clips,
        ids=lambda picture, length: turned(after_start(picture, length)), extra=lambda ids: qwen_types(turned(ids)),
    ),
    "qwen2_5_vl": _other("qwen2_5_vl", qwen2_5_vl, pictures=grids, videos=clips_in_time),
    "qwen3_vl": _other("qwen3_vl", qwen3_vl, pictures=grids, videos=clips),
    "qwen3_vl_moe": _other("qwen3_vl_moe", qwen3_vl_moe, pictures=grids, videos=clips),
    "qwen3_5": _other("qwen3_5", qwen3_5, pictures=grids, videos=clips, recurrent=(0, 1, 3, 6)),
    "qwen3_5_moe": _other("qwen3_5_moe", qwen3_5_moe, pictures=grids, videos=clips, recurrent=(1,)),
    "glm4v": _other("glm4v", glm4v, pictures=grids, videos=clips),
    "glm4v_moe": _other("glm4v_moe", glm4v_moe, pictures=grids, videos=clips),
    "glm46v": _other("glm46v", glm46v, pictures=grids, videos=clips),
    "internvl": _other("internvl", internvl, pictures=internvl_tiles, videos=internvl_frames, ids=wrapped),
    "smolvlm": _other("smolvlm", smolvlm, pictures=few_tiles, videos=few_frames, ids=tagged),
    "idefics3": _other("idefics3", idefics3, pictures=few_tiles, ids=tagged),
}  # fmt: skip
"""By family; where a family's test file says more of its prompts, that holds here too."""
