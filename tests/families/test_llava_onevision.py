"""LLaVA-OneVision's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import others
from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, Picture, Tiny


def config() -> Any:
    tower = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**TEXT),
        vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-1,
        image_grid_pinpoints=[[70, 70], [70, 140], [140, 70], [140, 140]],
    )  # fmt: skip


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Base view and up to four tiles; sizes differ, so token counts do."""
    sizes = torch.tensor([[140, 90], [70, 70], [60, 140], [140, 140]])[torch.arange(count) % 4]
    pixels = torch.randn(count, 5, 3, 70, 70, generator=rng)
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames."""
    return [{"pixel_values_videos": one[None]} for one in torch.randn(count, 3, 3, 70, 70, generator=rng)]


TINY = Tiny(config, "LlavaOnevisionForConditionalGeneration", tiles, frames)


def other_config() -> Any:
    return transformers.LlavaOnevisionConfig(
        text_config=transformers.Qwen2Config(**others.text(9, 2, 2, 28)), vision_config=others.siglip(4, 1, 42, 14),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-2, vision_aspect_ratio="anyres_max_2",
        image_grid_pinpoints=[[42, 126], [126, 126], [84, 42]],
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, pictures=others.tiles, videos=others.frames(4))
