"""Qwen3-VL's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import others
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


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 3, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 24,
            "deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 64,
        },
        image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=VISION_START, vision_end_token_id=94,
    )  # fmt: skip


def ids(picture: Picture, length: int) -> Tensor:
    """An image is one run; every temporal patch of a video has a time stamp, a start and an end around its own."""
    if "video_grid_thw" not in picture:
        return after_start(picture, length)
    frames = int(picture["video_grid_thw"][0, 0])
    run = [torch.tensor([7, VISION_START]), whole(picture, length // frames), torch.tensor([94])]
    return torch.cat(run * frames)


TINY = Tiny(config, "Qwen3VLForConditionalGeneration", qwen_patches, qwen_frames, ids=ids, extra=qwen_types, mrope=True)


def other_vision(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 4, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "num_position_embeddings": 25, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def other_config() -> Any:
    """The second layer but one of the tower alone is added, to the first of the decoder."""
    rope = others.mrope(3, 2, 1, mrope_interleaved=True)
    return transformers.Qwen3VLConfig(
        text_config=others.text(7, 3, 3, 20, head_dim=12, rope_parameters=rope),
        vision_config=other_vision(20, 3, deepstack_visual_indexes=[2]), **others.QWEN,
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, pictures=others.grids, videos=others.clips)
