"""LLaVA-NeXT-Video's tiny model."""

from typing import Any

import torch
import transformers

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
