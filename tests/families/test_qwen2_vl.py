"""Qwen2-VL's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import others
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


def other_config() -> Any:
    """Ids of images and videos, starts and ends the other way round."""
    return transformers.Qwen2VLConfig(
        text_config=others.text(7, 3, 1, 24, rope_parameters=others.mrope(1, 2, 1)),
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


OTHER = replace(
    TINY,
    config=other_config,
    pictures=others.grids,
    videos=others.clips,
    ids=lambda picture, length: turned(after_start(picture, length)),
    extra=lambda ids: qwen_types(turned(ids)),
)
