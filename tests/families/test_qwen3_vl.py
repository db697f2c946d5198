"""Qwen3-VL's tiny model."""

from typing import Any

import transformers

from tests.tiny import IMAGE, TEXT, VIDEO, Tiny, qwen_patches, qwen_types


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=93, vision_end_token_id=94,
    )  # fmt: skip


TINY = Tiny(config, "Qwen3VLForConditionalGeneration", qwen_patches, extra=qwen_types, mrope=True)
