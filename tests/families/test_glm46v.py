"""GLM-4.6V's tiny model."""

from dataclasses import replace
from typing import Any

import transformers

from tests import others
from tests.families.test_glm4v import TOKENS, VISION, ids, other_vision, types
from tests.families.test_glm4v_moe import MIXTURE
from tests.tiny import TEXT, Tiny, qwen_frames, qwen_patches


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    text = {**TEXT, **MIXTURE, "model_type": "glm4v_moe_text", "num_key_value_heads": 4, "rope_parameters": rope}
    vision = {**VISION, "model_type": "glm4v_vision", "num_heads": 1}
    return transformers.Glm46VConfig(text_config=text, vision_config=vision, **TOKENS)


TINY = Tiny(
    config, "Glm46VForConditionalGeneration", qwen_patches, qwen_frames, ids=ids, extra=types, mrope=True, apart=True
)


def other_config() -> Any:
    """With a dense decoder."""
    known = {"model_type": "glm4v_text", "rope_parameters": others.mrope(2, 1, 1, partial_rotary_factor=1.0)}
    return transformers.Glm46VConfig(
        text_config=others.text(5, 4, 2, 32, **known),
        vision_config=other_vision(32, 2, model_type="glm4v_vision"),
        **TOKENS,
    )


OTHER = replace(TINY, config=other_config, pictures=others.grids, videos=others.clips)
