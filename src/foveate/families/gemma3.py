"""Gemma 3: SigLIP patches averaged to 16 x 16 tokens, seen both ways inside an image; local and global layers.

The masks of both layer types say what a row sees, images both ways and windows in columns of the whole prompt; they
stay right for the rows that are left. Each layer type has a RoPE of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.core.flops import linear
from foveate.core.grid import Grid, into_cells
from foveate.core.tower import TowerView
from foveate.errors import SettingError
from foveate.families._encode import (
    Reducer,
    cells_cut,
    encoder_layers,
    first_rows,
    place_rows,
    replaced,
    smaller,
)
from foveate.families._tap import tapped
from foveate.families._towers import tower_picture
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Gemma3"]


class Gemma3(Family):
    """Where things are inside `Gemma3ForConditionalGeneration`."""

    model_type: ClassVar[str] = "gemma3"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma3_text"})
    shares_prefix: ClassVar[bool] = False  # images are seen both ways, told by token types

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector: a token's score and key are the means of the patches averaged into it."""
        seen: list[tuple[Tensor, Tensor, float]] = []
        attention: Any = encoder_layers(self.core.vision_tower)[-1].self_attn
        with tapped(attention, lambda q, k, s: seen.append((q, k, s))):
            output = run()
        ((queries, keys, scaling),) = seen
        views = []
        for index, image in enumerate(output.pooler_output):
            scores = self._pooled(received_attention(queries[index], keys[index], scaling)[:, None])[:, 0]
            states = self._pooled(keys[index].float().mean(dim=0))
            views.append(TowerView(image, self._grid, None, lambda _, s=scores: s, lambda _, k=states: k))  # type: ignore[misc]
        cuts = reducer.reduce(views)
        pairs = zip(output.pooler_output, cuts, strict=True)
        output.pooler_output = torch.stack([place_rows(image, cut) for image, cut in pairs])
        return output, cuts

    def _pooled(self, patches: Tensor) -> Tensor:
        """Means over the patches of each token, (patches, columns) -> (tokens, columns)."""
        projector = self.core.multi_modal_projector
        side: int = projector.patches_per_image
        means: Tensor = projector.avg_pool(patches.T.reshape(1, -1, side, side))
        return means.flatten(2)[0].T

    @property
    def _grid(self) -> Grid:
        return _grid(self.model.config)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The tower interpolates its position embeddings; the projector, made for one grid, gets the patches in the
        corner of an empty one.
        """
        grid, projector, pixels = self._grid, self.core.multi_modal_projector, given["pixel_values"]
        (cells,) = reducer.coarsen((grid,), grid[0] * grid[1], 0)
        if cells == grid:
            return run(), [None] * len(pixels)
        rows, columns = (side * projector.kernel_size for side in cells)

        def project(states: Tensor) -> Tensor:
            side = projector.patches_per_image
            canvas = states.new_zeros(len(states), side, side, states.shape[-1])
            canvas[:, :rows, :columns] = states.view(len(states), rows, columns, -1)
            tokens: Tensor = original(canvas.flatten(1, 2)).view(len(states), *grid, -1)
            return tokens[:, : cells[0], : cells[1]].flatten(1, 2)

        patch = self.model.config.vision_config.patch_size
        with replaced(projector, "forward", project) as original:
            output = run(pixel_values=smaller(pixels, rows * patch, columns * patch), interpolate_pos_encoding=True)
        cuts = [cells_cut(image, into_cells(grid, cells)) for image in output.pooler_output]
        whole = [first_rows(image, grid[0] * grid[1]) for image in output.pooler_output]
        output.pooler_output = torch.stack(whole)
        return output, cuts

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        grid = _grid(config)
        return None if any(size != grid[0] * grid[1] for size in sizes) else [(grid,)] * len(sizes)

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        """Of the picture the processor made of each image: with pan and scan that may be a part of it."""
        return [grid_boxes(*self._grid)] * len(lengths)

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        each = config.mm_tokens_per_image
        if odd := [size for size in sizes if size % each]:
            raise SettingError(f"This model makes {each} vision tokens of a picture; {odd[0]} is no multiple of that.")
        count = sum(size // each for size in sizes)
        return count * tower_picture(config.vision_config), _projector(config, count)

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int] | None:
        kernel = config.vision_config.image_size // config.vision_config.patch_size // _grid(config)[0]
        grids = [(rows * kernel, columns * kernel) for image in cells for rows, columns in image]
        tower = sum(tower_picture(config.vision_config, grid) for grid in grids)
        return tower, _projector(config, len(grids))


def _grid(config: Any) -> Grid:
    """Rows and columns of a picture's tokens."""
    side = int(config.mm_tokens_per_image**0.5)
    return side, side


def _projector(config: Any, pictures: int) -> int:
    return linear(
        pictures * config.mm_tokens_per_image, config.vision_config.hidden_size, config.text_config.hidden_size
    )


FAMILY = Gemma3
