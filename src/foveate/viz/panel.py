"""What one panel shows: a picture with the tokens of a stage; and what such a stage is."""

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
    """What a stage left of all images' tokens.

    Attributes:
        caption: What stands above its panels.
        origin: The token each row that went on stands for, −1 for none.
        assign: The row each token went into, −1 if it was dropped; None where nothing is merged.
    """

    caption: str
    origin: Ordinals
    assign: Ordinals | None

    @property
    def merges(self) -> bool:
        """Whether rows may stand for several tokens."""
        return self.assign is not None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Where the tokens of some pictures look, and what stages left of them.

    Attributes:
        places: (tokens, 4) boxes of each picture.
        starts: The ordinal of each picture's first token, and how many there are in all.
        stages: In order.
    """

    places: list[NDArray[np.float64]]
    starts: list[int]
    stages: list[StageTokens]

    @classmethod
    def of(cls, images: int, boxes: Sequence[Boxes], stages: Stages) -> "Tokens":
        """From what a caller gave.

        Raises:
            ShapeError: If there is no image, images and boxes differ in number, a box array is not (tokens, 4),
                or an ordinal lies outside the tokens.
        """
        if not images or images != len(boxes):
            raise ShapeError(f"Give one array of boxes an image; got {images} images and {len(boxes)} arrays.")
        on_host = [box.detach().cpu() if isinstance(box, Tensor) else box for box in boxes]
        places = [np.asarray(box, dtype=np.float64) for box in on_host]
        for place in places:
            if place.ndim != 2 or place.shape[1] != 4:
                raise ShapeError(f"Boxes are (tokens, 4): x0, y0, x1, y1; got {place.shape}.")
        starts = np.cumsum([0, *(len(place) for place in places)]).tolist()
        return cls(places, starts, [_read_stage(starts[-1], *stage) for stage in stages])

    @property
    def counts(self) -> list[int]:
        """Tokens of each picture."""
        return [len(place) for place in self.places]

    @property
    def legend(self) -> str:
        """What colours mean."""
        if any(stage.merges for stage in self.stages):
            return LEGEND
        return PLAIN_LEGEND

    def panels(self, stage: StageTokens, pictures: Mapping[int, Pixels]) -> list[tuple[Pixels, int]]:
        """Pictures, by their number, with what left at a stage dimmed; and how many tokens of each stayed."""
        return [_panel(pixels, self.places[at], self.starts[at], stage) for at, pixels in pictures.items()]


def _read_stage(total: int, caption: str, kept: Rows, into: Rows | None = None) -> StageTokens:
    """A stage of `total` tokens as a caller gave it; `into` says which row each token went into.

    Raises:
        ShapeError: If an ordinal lies outside the tokens, or a token goes into a row that is not there.
    """
    origin, assign = _ordinals(kept), None
    lowest = 0
    if into is not None:
        assign = _ordinals(into)
        lowest = -1  # a merged row may stand for no token
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
    """The picture whose tokens begin at ordinal `start`, with what left dimmed; and how many of them stayed.

    Merged patches are tinted and the patch they joined framed; rows of one token are kept ones.
    """
    origin, assign = stage.origin, stage.assign
    here = origin[(origin >= start) & (origin < start + len(place))] - start
    if assign is None:
        return dim(picture, place, here), len(here)
    members = np.bincount(assign[assign >= 0], minlength=len(origin))  # tokens that went into each row
    rows = assign[start : start + len(place)]  # the row that each token of this picture went into, or -1
    several = np.where(rows >= 0, members[rows], 0) > 1
    alone = ((rows >= 0) & ~several).nonzero()[0]
    merged = several.nonzero()[0]
    targets = origin[rows[merged]]  # what a group's colour goes by, so that it has the same one at every stage
    drawn = dim(picture, place, alone, merged, targets)
    for target in np.unique(targets).tolist():
        if 0 <= target - start < len(place):
            outline(drawn, place[target - start], group_colour(target))
    return drawn, len(here)


def _ordinals(kept: Rows) -> Ordinals:
    values: Ordinals = torch.as_tensor(kept).detach().cpu().numpy().astype(np.int64)
    return values
