"""GLM-4.5V's tiny model."""

from typing import Any

import transformers

from tests.families.test_glm4v import TOKENS, VISION, ids, types
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
