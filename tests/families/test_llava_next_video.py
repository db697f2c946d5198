"""LLaVA-NeXT-Video's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import others
from tests.families.test_llava_next import tiles
from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, Picture, Tiny


def config(**settings: Any) -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-2,
        image_grid_pinpoints=[[70, 140], [140, 70], [140, 140], [210, 70], [70, 210]], **settings,
    )  # fmt: skip


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames."""
    return [{"pixel_values_videos": one[None]} for one in torch.randn(count, 3, 3, 70, 70, generator=rng)]


TINY = Tiny(config, "LlavaNextVideoForConditionalGeneration", tiles, frames)


def other_config() -> Any:
    return transformers.LlavaNextVideoConfig(
        text_config=transformers.Qwen3Config(**others.text(2, 4, 1, 24), head_dim=12),
        vision_config=others.siglip(3, 2, 49, 7),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=1, vision_feature_select_strategy="full",
        image_grid_pinpoints=[[49, 98], [98, 98]], spatial_pool_stride=3, spatial_pool_mode="conv",
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, pictures=others.tiles, videos=others.frames(2))
