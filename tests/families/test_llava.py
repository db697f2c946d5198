"""LLaVA-1.5's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers

from tests import others
from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, Tiny, squares


def config() -> Any:
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=-2, image_seq_length=25,
    )  # fmt: skip


TINY = Tiny(config, "LlavaForConditionalGeneration", squares)


def other_config() -> Any:
    decoder = transformers.Qwen2Config(**others.text(7, 6, 3, 36))
    return transformers.LlavaConfig(
        text_config=decoder, vision_config=others.siglip(2, 3, 36, 9), image_token_index=VIDEO, vision_feature_layer=-1,
        vision_feature_select_strategy="full", multimodal_projector_bias=False,
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, ids=lambda picture, length: torch.full((length,), VIDEO))
