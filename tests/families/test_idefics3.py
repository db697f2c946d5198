"""Idefics3: its tiny model; it is special in the ways of SmolVLM, whose tests run on both."""

from dataclasses import replace
from typing import Any

import transformers

from tests import tiny_others
from tests.families.test_smolvlm import VISION, tagged, tiles
from tests.tiny import IMAGE, TEXT, Tiny


def config() -> Any:
    return transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip


TINY = Tiny(config, "Idefics3ForConditionalGeneration", tiles, ids=tagged)


def other_config() -> Any:
    """A patch a token, two by two tokens a tile."""
    return transformers.Idefics3Config(
        text_config=transformers.LlamaConfig(**tiny_others.text(3, 2, 2, 36)),
        vision_config=tiny_others.tower(4, 1, 20, 10), image_token_id=IMAGE, scale_factor=1,
    )  # fmt: skip


OTHER = replace(TINY, config=other_config, pictures=tiny_others.few_tiles, ids=tiny_others.tagged)
