"""What the vision tower and the projector cost, of pictures as they come or made smaller."""

from collections.abc import Sequence
from typing import Any

from foveate.contract import follow
from foveate.contract.stages import Stage
from foveate.core.grid import Grid, closing_rows
from foveate.core.views import Arriving
from foveate.cost._prompt import PromptSize
from foveate.families.base import Family

__all__ = ["smaller_tower_flops", "tower_bytes", "tower_flops"]

Grids = Sequence[Sequence[Grid]]


def tower_flops(family: type[Family], config: Any, prompt: PromptSize, grids: Grids | None) -> tuple[int, int]:
    """FLOPs of the tower and of the projector.

    Args:
        family: Knows its tower.
        config: The model's.
        prompt: What goes in.
        grids: Rows and columns of each image's frames or views, if the caller gave any: some towers' cost depends on
            them.
    """
    if grids:
        by_grids = family.smaller_tower_cost(config, grids)
        if by_grids is not None:
            return by_grids
    if not prompt.vision:
        return 0, 0
    return family.tower_cost(config, prompt.sizes, prompt.pictures)


def smaller_tower_flops(
    family: type[Family], config: Any, stages: Sequence[Stage], ranked: Sequence[int], grids: Grids
) -> tuple[int, int] | None:
    """The same where stages make pictures smaller; None if not known.

    Args:
        family: Knows its tower.
        config: The model's.
        stages: Of the method.
        ranked: Vision tokens of each image that a method counts.
        grids: Rows and columns of each image's frames or views.
    """
    cells = [_coarsened(stages, tuple(grid), size) for grid, size in zip(grids, ranked, strict=True)]
    return family.smaller_tower_cost(config, cells)


def tower_bytes(family: type[Family], config: Any, prompt: PromptSize, itemsize: int) -> tuple[int, int] | None:
    """Bytes of the pictures: at the most while they are encoded, and from then on; None if not known."""
    if not prompt.vision:
        return 0, 0
    return family.tower_bytes(config, prompt.sizes, prompt.pictures, itemsize)


def _coarsened(stages: Sequence[Stage], grids: tuple[Grid, ...], size: int) -> tuple[Grid, ...]:
    """The token grids of an image of `size` vision tokens after the stages before the tower."""
    cells = sum(rows * columns for rows, columns in grids)
    newlines = closing_rows(size - cells)
    return follow.coarsened(stages, Arriving(cells, size, cells, newlines, grids))
