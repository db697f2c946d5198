"""Gemma 4's tiny model: pictures of any shape, videos, and a window shorter than its prompts."""

from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny import IMAGE, TEXT, VIDEO, Picture, Tiny, qwen_types

WINDOW = 14
LOCAL, GLOBAL = "sliding_attention", "full_attention"
LAYERS = (LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL)
PATCHES = 64


def config(**changed: Any) -> Any:
    text = {
        **TEXT, "head_dim": 8, "global_head_dim": 12, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "sliding_window": WINDOW, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", **changed,
    }  # fmt: skip
    return transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**text, layer_types=list(LAYERS)),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=16, initializer_range=0.2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip


def patches(sizes: list[tuple[int, int]], rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures of so many rows and columns of patches, padded as the processor pads them, and where patches are."""
    pixels, places = torch.zeros(len(sizes), PATCHES, 48), torch.full((len(sizes), PATCHES, 2), -1)
    for index, (rows, columns) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places[index, : rows * columns] = torch.stack((x, y), dim=-1).view(-1, 2)
        pixels[index, : rows * columns] = torch.rand(rows * columns, 48, generator=rng)
    return pixels, places


def pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    sizes = [[(6, 8), (8, 8), (4, 6), (2, 10)][index % 4] for index in range(count)]
    return [
        {"pixel_values": pixels, "image_position_ids": places}
        for pixels, places in (patches([size], rng) for size in sizes)
    ]


def videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    found = []
    for index in range(count):
        pixels, places = patches([(4, 6), (6, 4)][index % 2 : index % 2 + 1] * (3 - index % 2), rng)
        found.append(
            {
                "pixel_values_videos": pixels,
                "video_position_ids": places,
                "num_frames_per_video": torch.tensor([len(pixels)]),
            }
        )
    return found


def sees(layer: int, columns: Tensor, picture: Tensor, prompt: int) -> Tensor:
    """Up to itself; in local layers no further back than the window, and all of its own picture."""
    row, key = columns[:, None], columns
    reach = window(layer)
    if reach is None:
        return key <= row
    return ((key <= row) | ((picture[:, None] == picture) & (picture >= 0))) & (row - key < reach)


def window(layer: int) -> int | None:
    return WINDOW if LAYERS[layer] == LOCAL else None


TINY = Tiny(
    config,
    "Gemma4ForConditionalGeneration",
    pictures,
    videos,
    extra=qwen_types,
    from_start=True,
    sees=sees,
    window=window,
)
