"""What the second tiny models of the families have in common: settings of decoders and towers, and pictures.

They differ from the first in depths, heads and widths, towers, windows, experts and token ids; each family's test file
holds its own, as `OTHER`. A new family is tested without one, and better with one.
"""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor

from tests.tiny import CLIP, IMAGE, TEXT, VIDEO, VISION_START, Frames, Picture

QWEN = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": 94,
}  # fmt: skip


def text(depth: int, heads: int, keys: int, width: int, **more: Any) -> dict[str, Any]:
    """Settings of a decoder: layers, heads, key heads, width."""
    sizes = {"num_hidden_layers": depth, "num_attention_heads": heads, "num_key_value_heads": keys}
    return {**TEXT, **sizes, "hidden_size": width, "intermediate_size": 33, "vocab_size": 101, **more}


def tower(depth: int, heads: int, size: int, patch: int) -> dict[str, Any]:
    """Settings of a tower for pictures of `size` pixels."""
    sizes = {"num_hidden_layers": depth, "num_attention_heads": heads, "hidden_size": 6 * heads}
    return {**CLIP, **sizes, "image_size": size, "patch_size": patch}


def siglip(depth: int, heads: int, size: int, patch: int) -> Any:
    known = tower(depth, heads, size, patch)
    del known["projection_dim"], known["initializer_range"]
    return transformers.SiglipVisionConfig(**known, vision_use_head=False)


def mrope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e5, "mrope_section": list(sections), **more}


def behind(window: Callable[[int], int | None]) -> Callable[..., Tensor]:
    """Up to itself, no further back than the layer's window."""

    def sees(layer: int, columns: Tensor, picture: Tensor, prompt: int, counts: Tensor) -> Tensor:
        row, key, reach = columns[:, None], columns, window(layer)
        return (key <= row) if reach is None else (key <= row) & (counts[:, None] - counts < reach)

    return sees


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of several shapes, some of which no pinpoint fits; padded to ten crops."""
    side = config.vision_config.image_size
    shapes = torch.tensor([[0.7, 2.2], [0.2, 2.8], [2.9, 2.6], [1.0, 1.0]])[torch.arange(count) % 4]
    pixels, sizes = torch.randn(count, 10, 3, side, side, generator=rng), (shapes * side).long()
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, sizes, strict=True)]


def frames(number: int) -> Callable[[Any, int, torch.Generator], list[Picture]]:
    """Videos of so many frames."""

    def make(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
        side = config.vision_config.image_size
        return [{"pixel_values_videos": one[None]} for one in torch.randn(count, number, 3, side, side, generator=rng)]

    return make


def grids(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Patches of pictures of several sizes, one token alone among them."""
    return _patches(config, [[1, 3, 2], [1, 1, 1], [1, 2, 5]], count, rng, "pixel_values", "image_grid_thw")


def clips(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Patches of videos, four temporal ones and one."""
    return _patches(config, [[4, 1, 3], [1, 2, 2]], count, rng, "pixel_values_videos", "video_grid_thw")


def _patches(config: Any, sizes: list[list[int]], count: int, rng: torch.Generator, *names: str) -> list[Picture]:
    """Of so many temporal patches and rows and columns of tokens."""
    vision, rows = config.vision_config, []
    for index in range(count):
        times, *sides = sizes[index % len(sizes)]
        grid = torch.tensor([times, *(side * vision.spatial_merge_size for side in sides)])
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        rows.append(dict(zip(names, (torch.randn(int(grid.prod()), width, generator=rng), grid[None]), strict=True)))
    return rows


def few_tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A single tile, six and the whole; padded with empty tiles."""
    return [{"pixel_values": one} for one in _padded(config, count, (1, 7), rng)]


def few_frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """A tile each; padded as `few_tiles`."""
    return [Frames(pixel_values=one) for one in _padded(config, count, (4, 1), rng)]


def _padded(config: Any, count: int, real: tuple[int, int], rng: torch.Generator) -> list[Tensor]:
    side = config.vision_config.image_size
    pixels = torch.randn(count, 7, 3, side, side, generator=rng)
    for index, one in enumerate(pixels):
        one[real[index % 2] :] = 0
    return list(pixels[:, None])


def tagged(picture: Picture, length: int) -> Tensor:
    """A tag before each tile, a newline behind each row, the tag of the whole; text before each frame of a video."""
    if isinstance(picture, Frames):
        return torch.tensor([5, 6, 93, 94, *[IMAGE] * 4, 93] * (length // 4))
    parts = [93, 94, *[IMAGE] * 4, 93]
    for tile in reversed(range(length // 4 - 1)):
        parts = [93, 10 + tile, *[IMAGE] * 4, *[95] * (tile % 3 == 2), *parts]
    return torch.tensor(parts)
