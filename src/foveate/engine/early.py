"""Attach: those of a method's stages that act before decoder layer 1. They need no decoder, so other hosts run them."""

from collections.abc import Sequence

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import Place, Stage, TowerStage
from foveate.core.grid import Grid
from foveate.core.views import Arriving

__all__ = ["EarlyStages"]


class EarlyStages:
    """Which stages act on an image's tokens on their way into the decoder.

    Args:
        method: Whose stages these are.
        stages: All of the method's, in order.

    Attributes:
        method: The same.
        stages: The same.
        pixels: Stages in front of the tower.
        tower: The stage inside the vision tower, if any.
        images: Stages on an image's tokens on their way out of the tower.
        entering: Stages on what enters the decoder: those before layer 0, and those behind the projector that another
            stage stands before.
        together: Whether stages may look at many samples at once.
    """

    def __init__(self, method: Method, stages: Sequence[Stage]) -> None:
        self.method = method
        self.stages = tuple(stages)
        self.pixels = follow.at(stages, Place.PIXELS)
        towers: tuple[TowerStage, ...] = follow.at(stages, Place.TOWER)  # type: ignore[assignment]
        self.tower = towers[0] if towers else None
        before = follow.at(stages, Place.BEFORE_PROJECTOR)
        behind = follow.at(stages, Place.BEHIND_PROJECTOR)
        opening = tuple(stage for stage in follow.layer_stages(stages) if stage.layer == 0)
        self.images: tuple[Stage, ...] = (*before, *behind)
        self.entering: tuple[Stage, ...] = opening
        # One run through the tower has one place to cut at: what comes behind it then stands before layer 0, where the
        # same features arrive.
        if behind and (self.pixels or towers or before):
            self.images = before
            self.entering = (*behind, *opening)
        self.together = not any(stage.host for stage in stages)

    @property
    def early(self) -> tuple[Stage, ...]:
        """All of them, in order."""
        stages = follow.at(self.stages, *(place for place in Place if place < Place.LAYER))
        return (*stages, *(stage for stage in self.entering if stage.place is Place.LAYER))

    @property
    def late(self) -> tuple[Stage, ...]:
        """The method's other stages: before later layers, in caches, in decoding."""
        early = self.early
        return tuple(stage for stage in self.stages if stage not in early)

    @property
    def encodes(self) -> str | None:
        """How a run through the tower is made: "pixels", "tower" or "projector"; None: as the model does."""
        if self.pixels:
            return "pixels"
        before = any(stage.place < Place.BEHIND_PROJECTOR for stage in self.images)
        if self.tower is not None or before:
            return "tower"
        return "projector" if self.images else None

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become in front of the tower."""
        tokens = sum(rows * columns for rows, columns in grids)
        return follow.coarsened(self.stages, Arriving(tokens, entered, tokens, reserved, tuple(grids)))

    def count(self, size: int, grids: Sequence[Grid]) -> int | None:
        """Rows of an image of `size` tokens on these grids that enter the decoder; None where the picture decides."""
        plan = follow.layer_plan(self.early, 1, (size,), (tuple(grids),), (False,))
        return None if plan is None else plan[0]
