"""GLM-4.5V's tiny model."""

from dataclasses import replace
from typing import Any

import transformers

from tests import others
from tests.families.test_glm4v import TOKENS, VISION, ids, other_vision, types
from tests.tiny import TEXT, Tiny, qwen_frames, qwen_patches

MIXTURE = {
    "n_routed_experts": 6, "n_shared_experts": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2,
    "topk_group": 1, "first_k_dense_replace": 2, "head_dim": 16,
}  # fmt: skip


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5}
    return transformers.Glm4vMoeConfig(
        text_config={**TEXT, **MIXTURE, "rope_parameters": rope}, vision_config={**VISION, "depth": 3}, **TOKENS
    )


TINY = Tiny(
    config, "Glm4vMoeForConditionalGeneration", qwen_patches, qwen_frames, ids=ids, extra=types, mrope=True, apart=True
)


def other_config() -> Any:
    experts = {
        "n_routed_experts": 3, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 12,
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0, "head_dim": 12,
    }  # fmt: skip
    rope = others.mrope(3, 2, 1, partial_rotary_factor=1.0)
    return transformers.Glm4vMoeConfig(
        text_config=others.text(3, 3, 1, 20, **experts, rope_parameters=rope),
        vision_config=other_vision(20, 1),
        **TOKENS,
    )


OTHER = replace(TINY, config=other_config, pictures=others.grids, videos=others.clips)
