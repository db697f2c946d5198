"""ViP-LLaVA's tiny model."""

from dataclasses import replace
from typing import Any

import transformers

from tests import others
from tests.tiny import CLIP, IMAGE, TEXT, Tiny, squares


def config() -> Any:
    return transformers.VipLlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=[-2, -3], image_seq_length=25,
    )  # fmt: skip


TINY = Tiny(config, "VipLlavaForConditionalGeneration", squares)


def other_config() -> Any:
    return transformers.VipLlavaConfig(
        text_config=transformers.LlamaConfig(**others.text(2, 5, 1, 40)),
        vision_config=transformers.CLIPVisionConfig(**others.tower(4, 2, 30, 10)), image_token_index=IMAGE,
        vision_feature_layer=(-1, 1, -3),
    )  # fmt: skip


OTHER = replace(TINY, config=other_config)
