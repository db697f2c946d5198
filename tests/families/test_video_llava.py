"""Video-LLaVA's tiny model."""

import inspect
from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import others
from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, Picture, Tiny, squares


def config() -> Any:
    return transformers.VideoLlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, video_token_index=VIDEO, vision_feature_layer=-2,
    )  # fmt: skip


def pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of one size, by the name this version of transformers has for them."""
    known = inspect.signature(transformers.VideoLlavaForConditionalGeneration.forward).parameters
    name = "pixel_values" if "pixel_values" in known else "pixel_values_images"
    return [{name: picture["pixel_values"]} for picture in squares(config, count, rng)]


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames."""
    return [{"pixel_values_videos": one[None]} for one in torch.randn(count, 3, 3, 70, 70, generator=rng)]


TINY = Tiny(config, "VideoLlavaForConditionalGeneration", pictures, frames)


def other_config() -> Any:
    return transformers.VideoLlavaConfig(
        text_config=transformers.LlamaConfig(**others.text(8, 1, 1, 20), head_dim=14, attention_bias=True),
        vision_config=transformers.CLIPVisionConfig(**others.tower(2, 3, 28, 7)), image_token_index=IMAGE,
        video_token_index=VIDEO, vision_feature_layer=[1, -1],
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, videos=others.frames(2))
