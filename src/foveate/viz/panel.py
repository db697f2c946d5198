"""What one panel shows: a picture with the tokens of a stage; and what such a stage is."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from foveate.errors import ShapeError
from foveate.viz.dim import Pixels, dim, group_colour, outline

__all__ = ["Boxes", "Stages", "checked", "panel", "split"]

Tokens = Tensor | Sequence[int]
Stages = Sequence["tuple[str, Tokens] | tuple[str, Tokens, Tokens | None]"]
Boxes = Tensor | ArrayLike
Ordinals = NDArray[np.int64]


def split(stage: "tuple[str, Tokens] | tuple[str, Tokens, Tokens | None]") -> tuple[Ordinals, Ordinals | None]:
    """(kept, None), or (origin, assign) where tokens were merged."""
    if len(stage) == 2 or stage[2] is None:
        return _ordinals(stage[1]), None
    return _ordinals(stage[1]), _ordinals(stage[2])


def panel(
    sheet: Pixels, place: NDArray[np.float64], start: int, origin: Ordinals, assign: Ordinals | None
) -> tuple[Pixels, int]:
    """The picture whose tokens begin at ordinal `start`, with what left dimmed; and how many of them stayed.

    Merged patches are tinted and the patch they joined framed; rows of one token are kept ones.
    """
    here = origin[(origin >= start) & (origin < start + len(place))] - start
    if assign is None:
        return dim(sheet, place, here), len(here)
    return _merged(sheet, place, start, origin, assign), len(here)


def _merged(sheet: Pixels, place: NDArray[np.float64], start: int, origin: Ordinals, assign: Ordinals) -> Pixels:
    members = np.bincount(assign[assign >= 0], minlength=len(origin))  # tokens that went into each row
    rows = assign[start : start + len(place)]  # the row that each token of this picture went into, or -1
    several = np.where(rows >= 0, members[rows], 0) > 1
    alone = ((rows >= 0) & ~several).nonzero()[0]
    merged = several.nonzero()[0]
    targets = origin[rows[merged]]  # what a group's colour goes by, so that it has the same one at every stage
    drawn = dim(sheet, place, alone, merged, targets)
    for target in np.unique(targets).tolist():
        if 0 <= target - start < len(place):
            outline(drawn, place[target - start], group_colour(target))
    return drawn


def checked(images: int, boxes: Sequence[Boxes], stages: Stages) -> list[NDArray[np.float64]]:
    """The boxes as arrays.

    Raises:
        ShapeError: If there is no image, images and boxes differ in number, a box array is not (tokens, 4),
            or an ordinal lies outside the tokens.
    """
    if not images or images != len(boxes):
        raise ShapeError(f"Give one array of boxes an image; got {images} images and {len(boxes)} arrays.")
    places = [_as_array(box) for box in boxes]
    for place in places:
        if place.ndim != 2 or place.shape[1] != 4:
            raise ShapeError(f"Boxes are (tokens, 4): x0, y0, x1, y1; got {place.shape}.")
    total = sum(len(place) for place in places)
    for stage in stages:
        _check(stage[0], *split(stage), total)
    return places


def _check(caption: str, origin: Ordinals, assign: Ordinals | None, total: int) -> None:
    """Refuse a stage that is not one of so many tokens."""
    lowest = 0 if assign is None else -1  # a merged row may stand for no token
    if origin.size and not lowest <= origin.min() <= origin.max() < total:
        raise ShapeError(
            f"Stage {caption!r} keeps ordinals {origin.min()} to {origin.max()}, but the images have {total} tokens."
        )
    if assign is None:
        return
    last = assign.max(initial=-1)
    if len(assign) != total or last >= len(origin):
        raise ShapeError(
            f"Stage {caption!r} assigns {len(assign)} tokens to rows up to {last}, "
            f"but the images have {total} tokens and the stage {len(origin)} rows."
        )


def _as_array(boxes: Boxes) -> NDArray[np.float64]:
    if isinstance(boxes, Tensor):
        boxes = boxes.detach().cpu()
    return np.asarray(boxes, dtype=np.float64)


def _ordinals(kept: Tokens) -> Ordinals:
    values: Ordinals = torch.as_tensor(kept).detach().cpu().numpy().astype(np.int64)
    return values
