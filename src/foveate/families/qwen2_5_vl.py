"""Qwen2.5-VL: as Qwen2-VL, with a tower that looks through windows, but for a few blocks.

Inside the tower tokens stand window by window; the features leave it in raster order.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from foveate.core.flops import attention
from foveate.core.grid import Grid
from foveate.errors import SettingError, UnsupportedError
from foveate.families._towers import qwen_bytes, qwen_cost
from foveate.families.qwen2_vl import Qwen2VL

__all__ = ["FAMILY", "Qwen25VL"]


class Qwen25VL(Qwen2VL):
    """Where things are inside `Qwen2_5_VLForConditionalGeneration`."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_5_vl_text"})

    @property
    def scoring_block(self) -> Any:
        """The last block that looks at the whole picture: what a token receives in a window is local."""
        visual = self.core.visual
        whole = [block for index, block in enumerate(visual.blocks) if index in visual.fullatt_block_indexes]
        if not whole:
            raise UnsupportedError(
                "No block of this tower looks at the whole picture (fullatt_block_indexes names none of its "
                f"{len(visual.blocks)}), so tokens cannot be ranked there. Use a method that drops between layers."
            )
        return whole[-1]

    def token_order(self, grids: Tensor) -> Tensor:
        visual = self.core.visual
        index, _ = get_vision_window_index(grids, visual.spatial_merge_size, visual.window_size, visual.patch_size)
        order: Tensor = index.argsort()
        return order

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        raise SettingError(
            "What Qwen2.5-VL's tower costs depends on the windows of each picture: give the rows and columns of its "
            "tokens, grids=[[(height // 28, width // 28)], …], an entry for each frame of each image."
        )

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        vision = config.vision_config
        inner, out = vision.intermediate_size, vision.out_hidden_size
        return qwen_bytes(vision, sum(sizes), itemsize, inner=inner, out=out, gated=True)

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int]:
        vision = config.vision_config
        width, inner, group = vision.hidden_size, vision.intermediate_size, vision.spatial_merge_size**2
        frames = [grid for image in cells for grid in image]
        counts = [rows * columns for rows, columns in frames]
        tower, merger = qwen_cost(
            vision, tuple(counts), (1,) * len(counts), inner=inner, out=vision.out_hidden_size, gated=True
        )
        windowed = sum(index not in vision.fullatt_block_indexes for index in range(vision.depth))
        for grid, count in zip(frames, counts, strict=True):
            tower -= windowed * attention(count * group, count * group, width)
            tower += windowed * sum(attention(size, size, width) for size in _windows(vision, grid))
        return tower, merger


def _windows(vision: Any, grid: Grid) -> list[int]:
    """Patches of each window of a grid of tokens: those at its edges are smaller."""
    merge = vision.spatial_merge_size
    side = vision.window_size // merge // vision.patch_size
    tall, wide = ([min(side, length - at) for at in range(0, length, side)] for length in grid)
    return [rows * columns * merge**2 for rows in tall for columns in wide]


FAMILY = Qwen25VL
