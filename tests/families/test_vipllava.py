"""ViP-LLaVA's tiny model."""

from typing import Any

import transformers

from tests.tiny import CLIP, IMAGE, TEXT, Tiny, squares


def config() -> Any:
    return transformers.VipLlavaConfig(
        text_config=transformers.LlamaConfig(**TEXT),
        vision_config=transformers.CLIPVisionConfig(**CLIP),
        image_token_index=IMAGE, vision_feature_layer=[-2, -3], image_seq_length=25,
    )  # fmt: skip


TINY = Tiny(config, "VipLlavaForConditionalGeneration", squares)
