"""One panel: a picture with the tokens that a stage kept, dropped or merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foveate.errors import ShapeError
from foveate.viz.canvas import LEGEND, PLAIN_LEGEND
from foveate.viz.dim import Pixels, dim, group_colour, outline

Rows = Tensor | Sequence[int]
Stages = Sequence["tuple[str, Rows] | tuple[str, Rows, Rows | None]"]
Boxes = Tensor | ArrayLike
Ordinals = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StageTokens:
    """The result of a stage, on the tokens of all pictures.

    Attributes:
        caption: The heading of its panels.
        origin: (rows,), the ordinal of the token that each remaining row stands for; −1 for none.
        assign: (tokens,), the row that each token was merged into; −1 if it was dropped. None if the stage does not
            merge.
    """

    caption: str
    origin: Ordinals
    assign: Ordinals | None

    @property
    def merges(self) -> bool:
        """True if rows may stand for several tokens."""
        return self.assign is not None


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """The positions of the tokens of some pictures, and the results of stages on them.

    Attributes:
        places: For each picture (tokens, 4) boxes.
        starts: The ordinal of each picture's first token, then the total: [0, 9, 18] for two pictures of 9 tokens.
        stages: The results of the stages, in order.
    """

    places: list[NDArray[np.float64]]
    starts: list[int]
    stages: list[StageTokens]

    @classmethod
    def of(cls, images: int, boxes: Sequence[Boxes], stages: Stages) -> "DrawnTokens":
        """Build from the arguments of a drawing function.

        Raises:
            ShapeError: If there are no images, images and boxes differ in number, a box array is not (tokens, 4), or an
                ordinal is out of range.
        """
        if not images or images != len(boxes):
            raise ShapeError(f"Give one array of boxes per image; got {images} images and {len(boxes)} arrays.")
        on_host = [box.detach().cpu() if isinstance(box, Tensor) else box for box in boxes]
        places = [np.asarray(box, dtype=np.float64) for box in on_host]
        for place in places:
            if place.ndim != 2 or place.shape[1] != 4:
                raise ShapeError(f"Boxes are (tokens, 4): x0, y0, x1, y1; got {place.shape}.")
        starts = np.cumsum([0, *(len(place) for place in places)]).tolist()
        return cls(places, starts, [_read_stage(starts[-1], *stage) for stage in stages])

    @property
    def counts(self) -> list[int]:
        """The number of tokens of each picture."""
        return [len(place) for place in self.places]

    @property
    def legend(self) -> str:
        """The legend of the colours."""
        if any(stage.merges for stage in self.stages):
            return LEGEND
        return PLAIN_LEGEND

    def panels(self, stage: StageTokens, pictures: Mapping[int, Pixels]) -> list[tuple[Pixels, int]]:
        """Draw the result of a stage on pictures, given by their index.

        Returns:
            For each picture its pixels with dropped patches dimmed, and the number of its tokens that stayed.
        """
        return [_panel(pixels, self.places[at], self.starts[at], stage) for at, pixels in pictures.items()]


def _read_stage(total: int, caption: str, kept: Rows, into: Rows | None = None) -> StageTokens:
    """Build and check a stage from a caller's arguments.

    Args:
        total: The number of tokens of all pictures.
        caption: The heading of the panels.
        kept: (rows,), the ordinal of each remaining row's token.
        into: (tokens,), the row that each token was merged into, −1 if it was dropped; None if nothing is merged.

    Raises:
        ShapeError: If an ordinal is out of range, or a token is merged into a row that does not exist.
    """
    origin, assign = _ordinals(kept), None
    lowest = 0
    if into is not None:
        assign = _ordinals(into)
        lowest = -1  # a merged row may have no token of its own
    if origin.size and not lowest <= origin.min() <= origin.max() < total:
        raise ShapeError(
            f"Stage {caption!r} keeps ordinals {origin.min()} to {origin.max()}, but the images have {total} tokens."
        )
    if assign is not None and (len(assign) != total or assign.max(initial=-1) >= len(origin)):
        raise ShapeError(
            f"Stage {caption!r} assigns {len(assign)} tokens to rows up to {assign.max(initial=-1)}, "
            f"but the images have {total} tokens and the stage {len(origin)} rows."
        )
    return StageTokens(caption, origin, assign)


def _panel(picture: Pixels, place: NDArray[np.float64], start: int, stage: StageTokens) -> tuple[Pixels, int]:
    """Draw a stage on the picture whose tokens start at ordinal `start`.

    Merged patches are tinted, and the patch they were merged into is framed. A row of one token counts as kept.

    Returns:
        The pixels, and the number of the picture's tokens that stayed.
    """
    origin, assign = stage.origin, stage.assign
    here = origin[(origin >= start) & (origin < start + len(place))] - start
    if assign is None:
        return dim(picture, place, here), len(here)
    # Example: tokens 0 and 2 in row 0, token 3 in row 1, token 1 dropped: assign 0 -1 0 1 -> members 2 1.
    members = np.bincount(assign[assign >= 0], minlength=len(origin))  # (rows,) tokens merged into each row
    rows = assign[start : start + len(place)]  # the row of each token of this picture, -1 if dropped
    several = np.where(rows >= 0, members[rows], 0) > 1
    alone = ((rows >= 0) & ~several).nonzero()[0]
    merged = several.nonzero()[0]
    targets = origin[rows[merged]]  # the colour depends on the target, so a group has the same colour at every stage
    drawn = dim(picture, place, alone, merged, targets)
    for target in np.unique(targets).tolist():
        if 0 <= target - start < len(place):
            outline(drawn, place[target - start], group_colour(target))
    return drawn, len(here)


def _ordinals(kept: Rows) -> Ordinals:
    values: Ordinals = torch.as_tensor(kept).detach().cpu().numpy().astype(np.int64)
    return values
