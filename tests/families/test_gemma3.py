"""Gemma 3's tiny model, with a window shorter than its prompts."""

from typing import Any

import transformers
from torch import Tensor

from tests.tiny import IMAGE, TEXT, Tiny, squares

WINDOW = 20
LAYERS = ("sliding_attention", "full_attention", "sliding_attention") * 2


def config() -> Any:
    rope = {
        kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in zip(LAYERS, (1e2, 1e4), strict=False)
    }
    text = {**TEXT, "head_dim": 12, "query_pre_attn_scalar": 9, "sliding_window": WINDOW, "rope_parameters": rope}
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**text, layer_types=list(LAYERS)),
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, patch_size=7,
            image_size=70, vision_use_head=False,
        ),
        image_token_index=IMAGE, mm_tokens_per_image=25,
    )  # fmt: skip


def types(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images: they see one another both ways."""
    return {"token_type_ids": (ids == IMAGE).long()}


def sees(layer: int, columns: Tensor, picture: Tensor, prompt: int) -> Tensor:
    """Up to itself and all of its own picture, of that in local layers what is no further back than the window."""
    row, key = columns[:, None], columns
    seen = (key <= row) | ((picture[:, None] == picture) & (picture >= 0))
    reach = window(layer)
    return seen if reach is None else seen & (row - key < reach)


def window(layer: int) -> int | None:
    return WINDOW if LAYERS[layer] == "sliding_attention" else None


TINY = Tiny(config, "Gemma3ForConditionalGeneration", squares, extra=types, sees=sees, window=window)
