"""Resize: the control that looks at a smaller picture: the tower itself makes fewer tokens."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from foveate.core.grid import Grid
from foveate.methods.grid import GridMethod

__all__ = ["METHOD", "Resize"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize(GridMethod):
    """Gives the tower a smaller image, so that its token grid is coarser: 13 x 14 for 24 x 24 at a third.

    Pixels are resized as the processor left them, bilinear and antialiased. CLIP and SigLIP interpolate their position
    embeddings to the smaller grid; Qwen-VL's towers take any size. The prompt stays that of the whole image: a token
    has the position ids of the usual token at its centre. The tower gets cheaper too.

    Attributes:
        keep: See `GridMethod`.
    """

    name: ClassVar[str] = "resize"

    @property
    def stage(self) -> Literal["pixels", "tower", "projector"]:
        return "pixels"

    def _left(self, size: int, grids: tuple[Grid, ...]) -> int | None:
        # How a mosaic of smaller tiles is unpadded depends on the picture's proportions.
        newlines = size - sum(rows * columns for rows, columns in grids)
        return None if newlines > 1 else GridMethod._left(self, size, grids)


METHOD = Resize
