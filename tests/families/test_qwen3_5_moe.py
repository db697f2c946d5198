"""Qwen3.5-MoE's tiny model."""

from dataclasses import replace
from typing import Any

import transformers

from tests import others
from tests.families.test_qwen3_5 import other_states
from tests.families.test_qwen3_vl import ids, other_vision
from tests.tiny import IMAGE, TEXT, VIDEO, VISION_START, Tiny, qwen_frames, qwen_patches, qwen_types


def config() -> Any:
    rope = {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0], "mrope_interleaved": True,
        "partial_rotary_factor": 0.25,
    }  # fmt: skip
    linear, full = "linear_attention", "full_attention"
    return transformers.Qwen3_5MoeConfig(
        text_config={
            **TEXT, "num_key_value_heads": 4, "head_dim": 16, "rope_parameters": rope,
            "layer_types": [linear, *[full] * 4, linear], "linear_num_key_heads": 2, "linear_num_value_heads": 2,
            "linear_key_head_dim": 12, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 3,
            "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 20,
        },
        vision_config={
            "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "num_position_embeddings": 64,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=94,
    )  # fmt: skip


TINY = Tiny(
    config, "Qwen3_5MoeForConditionalGeneration", qwen_patches, qwen_frames, ids=ids, extra=qwen_types, mrope=True,
    recurrent=(0, 5),
)  # fmt: skip


def other_config() -> Any:
    linear, full = "linear_attention", "full_attention"
    experts = {"num_experts": 3, "num_experts_per_tok": 1, "moe_intermediate_size": 12}
    rope = others.mrope(4, 4, 4, mrope_interleaved=True, partial_rotary_factor=1.0)
    more = {**experts, "shared_expert_intermediate_size": 8, "rope_parameters": rope}
    return transformers.Qwen3_5MoeConfig(
        text_config=other_states(4, 2, 2, 28, **more, layer_types=[full, linear, full, full]),
        vision_config=other_vision(28, 1), **others.QWEN,
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, pictures=others.grids, videos=others.clips, recurrent=(1,))
