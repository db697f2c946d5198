"""PaliGemma's tiny model."""

from dataclasses import replace
from typing import Any

import torch
import transformers
from torch import Tensor

from tests import tiny_others
from tests.tiny import CLIP, IMAGE, TEXT, Tiny, squares


def config(text: Any = None) -> Any:
    tower = {key: value for key, value in CLIP.items() if key not in ("projection_dim", "initializer_range")}
    return transformers.PaliGemmaConfig(
        text_config=text or transformers.GemmaConfig(**TEXT, head_dim=12),
        vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
        image_token_index=IMAGE, projection_dim=TEXT["hidden_size"], hidden_size=TEXT["hidden_size"],
    )  # fmt: skip


def types(ids: Tensor) -> dict[str, Tensor]:
    """The whole prompt is prefix, as the processor has it where there is no suffix to train on."""
    return {"token_type_ids": torch.zeros_like(ids)}


def sees(
    layer: int, columns: Tensor, picture: Tensor, prompt: int, counts: Tensor | None = None, turn: int = 0
) -> Tensor:
    """All of the prompt, of one that came in two calls all that had come; then up to itself."""
    row, key = columns[:, None], columns
    both = (row < prompt) & (key < prompt) & ((row >= turn) | (key < turn))
    return both | (key <= row)


TINY = Tiny(config, "PaliGemmaForConditionalGeneration", squares, extra=types, from_start=True, sees=sees, prefix=True)


def other_config() -> Any:
    return transformers.PaliGemmaConfig(
        text_config=transformers.GemmaConfig(**tiny_others.text(4, 3, 1, 20), head_dim=6),
        vision_config=tiny_others.siglip(2, 3, 40, 10),
        image_token_index=IMAGE, projection_dim=20, hidden_size=20,
    )  # fmt: skip


OTHER = replace(TINY, config=other_config)
