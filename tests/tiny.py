"""What a family's tiny random model is made of; its test file holds its own, as `TINY`, or the file of its lineage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.testing.models import CLIP, DEPTH, IMAGE, PAD, TEXT, VIDEO, VISION_START, VOCABULARY

__all__ = [
    "CLIP", "DEPTH", "IMAGE", "PAD", "TEXT", "VIDEO", "VISION_START", "VOCABULARY", "Frames", "Picture", "Tiny",
    "after_start",    "nothing", "nothing_of", "qwen_frames", "qwen_patches", "qwen_types", "squares", "whole",
]  # fmt: skip

Picture = dict[str, Any]
"""The tensors of one picture, batch 1, as its processor would make them."""


class Frames(dict[str, Any]):
    """The tensors of a video whose frames are pictures to the model."""


def whole(picture: Picture, length: int) -> Tensor:
    """Ids of a picture or a video that is one run of placeholders."""
    return torch.full((length,), VIDEO if any("video" in name for name in picture) else IMAGE)


def after_start(picture: Picture, length: int) -> Tensor:
    """As `whole`, after the token that says so: older versions of transformers count the pictures of a beam by it."""
    return torch.cat((torch.tensor([VISION_START]), whole(picture, length)))


def nothing(ids: Tensor) -> dict[str, Tensor]:
    """No tensors beside the ids."""
    return {}


def nothing_of(layer: int) -> None:
    """No layer has a window."""


@dataclass(frozen=True)
class Tiny:
    """A family's tiny random model, and how its prompts look.

    Attributes:
        config: Makes its config; the text model from `TEXT`.
        kind: The class in transformers.
        pictures: So many pictures, of different sizes where the family knows such.
        videos: So many videos, of different lengths where the family knows such; None if it knows no video.
        ids: What stands in the prompt for a picture or a video of so many vision tokens.
        extra: Further tensors that go with (batch, columns) ids.
        from_start: Whether those are read by position, from the start of the sequence, in later turns too.
        mrope: Whether positions have several axes.
        sees: Which rows each row sees in a layer, where that is not just those up to it: called with (layer, columns
            and pictures of the rows, −1 for text, how many columns the prompt has, what windows count of the rows), it
            answers (rows, rows) bool.
        prefix: Whether all of a prompt sees all of it, in a later turn all before it too: `sees` then takes `turn`, how
            many columns earlier turns had.
        window: How many columns a row of a layer sees, its own included, where it has a window.
        recurrent: Layers that carry a state: it cannot be cropped, and fades where padding is between tokens.
        apart: Whether transformers takes images or videos in one call, but not both.
    """

    config: Callable[[], Any]
    kind: str
    pictures: Callable[[Any, int, torch.Generator], list[Picture]]
    videos: Callable[[Any, int, torch.Generator], list[Picture]] | None = None
    ids: Callable[[Picture, int], Tensor] = whole
    extra: Callable[[Tensor], dict[str, Tensor]] = nothing
    from_start: bool = False
    mrope: bool = False
    sees: Callable[..., Tensor] | None = None
    prefix: bool = False
    window: Callable[[int], int | None] = nothing_of
    recurrent: Sequence[int] = ()
    apart: bool = False

    def held(self, layer: int, rows: int) -> int:
        """Of so many rows, those a layer's cache holds afterwards."""
        if layer in self.recurrent:
            return 0
        window = self.window(layer)
        return rows if window is None else min(rows, window - 1)


def squares(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Pictures of one size."""
    side = config.vision_config.image_size
    return [{"pixel_values": one[None]} for one in torch.randn(count, 3, side, side, generator=rng)]


def qwen_patches(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Patches of pictures in several sizes, as the Qwen-VL processors make them."""
    grids = torch.tensor([[1, 4, 6], [1, 6, 6], [1, 2, 4], [1, 8, 4]])[torch.arange(count) % 4]
    parts = _patches(config, grids, rng)
    return [{"pixel_values": part, "image_grid_thw": grid[None]} for part, grid in zip(parts, grids, strict=True)]


def qwen_frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """As `qwen_patches`, of videos of several temporal patches."""
    grids = torch.tensor([[3, 4, 4], [2, 4, 6]])[torch.arange(count) % 2]
    parts = _patches(config, grids, rng)
    return [
        {"pixel_values_videos": part, "video_grid_thw": grid[None]} for part, grid in zip(parts, grids, strict=True)
    ]


def _patches(config: Any, grids: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    vision = config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    counts = grids.prod(-1)
    return torch.randn(int(counts.sum()), width, generator=rng).split(counts.tolist())


def qwen_types(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images, and which of videos."""
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
