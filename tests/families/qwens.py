"""Tiny models of Qwen-VLs and GLM-4Vs of which no test is theirs alone; and what several of them have in common."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import tiny_others
from tests.tiny import (
    IMAGE,
    TEXT,
    VIDEO,
    VISION_START,
    Picture,
    Tiny,
    after_start,
    qwen_frames,
    qwen_patches,
    qwen_types,
    whole,
)
from tests.tiny_others import QWEN

VIDEO_START, VIDEO_END = 90, 95
GLM = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "image_size": 70}
GLM_TOKENS = {
    "image_token_id": IMAGE, "image_start_token_id": VISION_START, "image_end_token_id": 94,
    "video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END,
}  # fmt: skip
MIXTURE = {
    "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 2, "head_dim": 16,
}  # fmt: skip
LINEAR, FULL = "linear_attention", "full_attention"


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


def qwen2_vl() -> Any:
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope(2, 1, 1)},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}, **QWEN,
    )  # fmt: skip


def other_qwen2_vl() -> Any:
    """Ids of images and videos, starts and ends the other way round."""
    return transformers.Qwen2VLConfig(
        text_config=tiny_others.text(7, 3, 1, 24, rope_parameters=tiny_others.mrope(1, 2, 1)),
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


def qwen3_tower(**settings: Any) -> dict[str, Any]:
    known = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24}
    return {**known, "num_position_embeddings": 36, **settings}


def qwen3_vl() -> Any:
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope(2, 1, 1, mrope_interleaved=True)},
        vision_config=qwen3_tower(depth=3, deepstack_visual_indexes=[0, 1, 2], num_position_embeddings=64), **QWEN,
    )  # fmt: skip


def ids(picture: Picture, length: int) -> Tensor:
    """An image is one run; every temporal patch of a video has a time stamp, a start and an end around its own."""
    if "video_grid_thw" not in picture:
        return after_start(picture, length)
    frames = int(picture["video_grid_thw"][0, 0])
    run = [torch.tensor([7, VISION_START]), whole(picture, length // frames), torch.tensor([94])]
    return torch.cat(run * frames)


def other_qwen3_tower(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 4, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "num_position_embeddings": 25, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def other_qwen3_vl() -> Any:
    """The second layer but one of the tower alone is added, to the first of the decoder."""
    return transformers.Qwen3VLConfig(
        text_config=tiny_others.text(
            7, 3, 3, 20, head_dim=12, rope_parameters=tiny_others.mrope(3, 2, 1, mrope_interleaved=True)
        ),
        vision_config=other_qwen3_tower(20, 3, deepstack_visual_indexes=[2]), **QWEN,
    )  # fmt: skip


def qwen3_5_moe() -> Any:
    positions = rope(1, 1, 0, mrope_interleaved=True, partial_rotary_factor=0.25)
    return transformers.Qwen3_5MoeConfig(
        text_config={
            **TEXT, "num_key_value_heads": 4, "head_dim": 16, "rope_parameters": positions,
            "layer_types": [LINEAR, *[FULL] * 4, LINEAR], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
            "linear_key_head_dim": 12, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3,
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 20,
        },
        vision_config=qwen3_tower(depth=3, num_position_embeddings=64), **QWEN,
    )  # fmt: skip


def other_states(depth: int, heads: int, keys: int, width: int, **more: Any) -> dict[str, Any]:
    """Settings of a decoder with states: three key heads, six value heads, all of other sizes."""
    known = {
        "linear_num_key_heads": 3, "linear_num_value_heads": 6, "linear_key_head_dim": 4, "linear_value_head_dim": 10,
        "linear_conv_kernel_dim": 2, "head_dim": 24, **more,
    }  # fmt: skip
    return tiny_others.text(depth, heads, keys, width, **known)


def other_qwen3_5_moe() -> Any:
    experts = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 12}
    positions = tiny_others.mrope(4, 4, 4, mrope_interleaved=True, partial_rotary_factor=1.0)
    more = {**experts, "shared_expert_intermediate_size": 8, "rope_parameters": positions}
    return transformers.Qwen3_5MoeConfig(
        text_config=other_states(4, 2, 2, 28, **more, layer_types=[FULL, LINEAR, FULL, FULL]),
        vision_config=other_qwen3_tower(28, 1), **QWEN,
    )  # fmt: skip


def glm4v_moe() -> Any:
    text = {**TEXT, **MIXTURE, "rope_parameters": rope(2, 1, 1, partial_rotary_factor=0.5)}
    return transformers.Glm4vMoeConfig(text_config=text, vision_config={**GLM, "depth": 3}, **GLM_TOKENS)


def glm_ids(picture: Picture, length: int) -> Tensor:
    """A video is one image for every temporal patch, with a time stamp, between a start and an end of its own."""
    if "video_grid_thw" not in picture:
        return after_start(picture, length)
    frames = int(picture["video_grid_thw"][0, 0])
    frame = [torch.tensor([VISION_START]), torch.full((length // frames,), IMAGE), torch.tensor([94, 7])]
    return torch.cat([torch.tensor([VIDEO_START]), *frame * frames, torch.tensor([VIDEO_END])])


def glm_types(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images, and which, between start and end of one, of videos."""
    inside = (ids == VIDEO_START).cumsum(-1) > (ids == VIDEO_END).cumsum(-1)
    return {"mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}


def other_glm_tower(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 3, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "image_size": 30, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def other_glm4v_moe() -> Any:
    experts = {
        "n_routed_experts": 3, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "head_dim": 12,
    }  # fmt: skip
    text = tiny_others.text(
        3, 3, 1, 20, **experts, rope_parameters=tiny_others.mrope(3, 2, 1, partial_rotary_factor=1.0)
    )
    return transformers.Glm4vMoeConfig(text_config=text, vision_config=other_glm_tower(20, 1), **GLM_TOKENS)


def glm46v() -> Any:
    more = {"model_type": "glm4v_moe_text", "num_key_value_heads": 4}
    text = {**TEXT, **MIXTURE, **more, "rope_parameters": rope(2, 1, 1, partial_rotary_factor=0.5)}
    vision = {**GLM, "model_type": "glm4v_vision", "num_heads": 1}
    return transformers.Glm46VConfig(text_config=text, vision_config=vision, **GLM_TOKENS)


def other_glm46v() -> Any:
    """With a dense decoder."""
    known = {"model_type": "glm4v_text", "rope_parameters": tiny_others.mrope(2, 1, 1, partial_rotary_factor=1.0)}
    vision = other_glm_tower(32, 2, model_type="glm4v_vision")
    return transformers.Glm46VConfig(
        text_config=tiny_others.text(5, 4, 2, 32, **known), vision_config=vision, **GLM_TOKENS
    )


def qwen(config: Any, kind: str, ids: Any = ids, **more: Any) -> Tiny:
    return Tiny(
        config, f"{kind}ForConditionalGeneration", qwen_patches, qwen_frames, ids, qwen_types, mrope=True, **more
    )


def glm(config: Any, kind: str) -> Tiny:
    return replace(qwen(config, kind, glm_ids), extra=glm_types, apart=True)


def other(tiny: Tiny, config: Any, **more: Any) -> Tiny:
    return replace(tiny, config=config, pictures=tiny_others.grids, videos=tiny_others.clips, **more)


TINY = {
    "qwen2_vl": qwen(qwen2_vl, "Qwen2VL", after_start),
    "qwen3_vl": qwen(qwen3_vl, "Qwen3VL"),
    "qwen3_5_moe": qwen(qwen3_5_moe, "Qwen3_5Moe", recurrent=(0, 5)),
    "glm4v_moe": glm(glm4v_moe, "Glm4vMoe"),
    "glm46v": glm(glm46v, "Glm46V"),
}
OTHER = {
    "qwen2_vl": other(
        TINY["qwen2_vl"], other_qwen2_vl, ids=lambda picture, length: turned(after_start(picture, length)),
        extra=lambda ids: qwen_types(turned(ids)),
    ),
    "qwen3_vl": other(TINY["qwen3_vl"], other_qwen3_vl),
    "qwen3_5_moe": other(TINY["qwen3_5_moe"], other_qwen3_5_moe, recurrent=(1,)),
    "glm4v_moe": other(TINY["glm4v_moe"], other_glm4v_moe),
    "glm46v": other(TINY["glm46v"], other_glm46v),
}  # fmt: skip
