"""What is shown of one image in the vision tower: by a family, to a method."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.signals import TowerSignal

__all__ = ["TowerView"]


@dataclass(slots=True)
class TowerView:
    """One image in the vision tower, or just behind it.

    Attributes:
        features: (tokens, width): what will be reduced: the tower's features on their way to the projector, or the
            vision tokens behind it where the projector pools or merges (Qwen2-VL, OneVision).
        grid: Rows and columns of the tokens, or None where they are no plain grid.
        cls: The CLS state beside them, (1, width), where the tower has one and it may become a token; else None.
        read: Returns what the tower shows of each token for a signal, one of the reducer's `reads`: attention as
            (tokens, 1) float32, keys as (tokens, size) float32.
        merge: What a stage inside the tower did to the patches, if anything: then these are the merged ones.
        entered: Vision tokens the image will have had, newlines and the like among them: what counts are shares of.
        reserved: Rows the family will add by itself (a closing newline), to be spared from a fixed count.
        grids: Rows and columns of each frame or view, one behind the other; empty where they are not known.
        deepstack: Makes what the tower adds to each token behind the first decoder layers, (tokens, layers · width);
            None where it adds nothing.
        early: Whether a stage inside the tower has seen the patches, also where it merged none.
        made: Returns the tower's features of each token, (tokens, width), where `features` are behind the projector;
            None where the family does not show them.
    """

    features: Tensor
    grid: tuple[int, int] | None
    cls: Tensor | None
    read: Callable[[TowerSignal], Tensor]
    merge: Cut | None = None
    entered: int = 0
    reserved: int = 0
    grids: tuple[Grid, ...] = ()
    deepstack: Callable[[], Tensor] | None = None
    early: bool = False
    made: Callable[[], Tensor] | None = None

    def __len__(self) -> int:
        return self.features.shape[0]
