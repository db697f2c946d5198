"""LLaVA-NeXT's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import others
from tests.tiny import CLIP, IMAGE, TEXT, Picture, Tiny


def config(text: Any = None) -> Any:
    return transformers.LlavaNextConfig(
        text_config=text or transformers.MistralConfig(**TEXT, sliding_window=None),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=-2,
        image_grid_pinpoints=[[70, 140], [140, 70], [140, 140], [210, 70], [70, 210]],
    )  # fmt: skip


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A base view and two to four tiles, padded to five crops as a batch is; sizes differ, so token counts do."""
    sizes = torch.tensor([[140, 90], [60, 140], [33, 200], [140, 140]])[torch.arange(count) % 4]
    side = config.vision_config.image_size
    pixels = torch.randn(count, 5, 3, side, side, generator=rng)
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


TINY = Tiny(config, "LlavaNextForConditionalGeneration", tiles)


def other_config() -> Any:
    return transformers.LlavaNextConfig(
        text_config=transformers.MistralConfig(**others.text(5, 3, 3, 48), head_dim=10, sliding_window=17),
        vision_config=transformers.CLIPVisionConfig(**others.tower(4, 1, 36, 9)), image_token_index=IMAGE,
        vision_feature_layer=[-2, 1], image_grid_pinpoints=[[72, 108], [108, 72], [36, 36], [36, 144]],
    )  # fmt: skip


OTHER = replace(
    TINY, config=other_config, pictures=others.tiles, window=lambda layer: 17, sees=others.behind(lambda layer: 17)
)
