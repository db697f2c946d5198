"""Qwen2-VL's tiny model."""

from typing import Any

import transformers

from tests.tiny import IMAGE, TEXT, VIDEO, VISION_START, Tiny, after_start, qwen_frames, qwen_patches, qwen_types


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return transformers.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=94,
    )  # fmt: skip


TINY = Tiny(
    config, "Qwen2VLForConditionalGeneration", qwen_patches, qwen_frames, after_start, extra=qwen_types, mrope=True
)
