"""Idefics3: its tiny model; it is special in the ways of SmolVLM, whose tests run on both."""

from typing import Any

import transformers

from tests.families.test_smolvlm import VISION, tagged, tiles
from tests.tiny import IMAGE, TEXT, Tiny


def config() -> Any:
    return transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip


TINY = Tiny(config, "Idefics3ForConditionalGeneration", tiles, ids=tagged)
