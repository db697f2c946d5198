"""Picking from an image crop by crop: from a base view, tiles, frames, each its share."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foveate.core.budget import shared_out
from foveate.core.grid import Grid, crops_of
from foveate.core.tensors import send

__all__ = ["Pick", "pick_by_crop"]


class Pick(Protocol):
    """Picks `count` of a crop's tokens, given their ordinals in the image; answers with ordinals in the crop."""

    def __call__(self, tokens: Tensor, count: int) -> Tensor: ...


def pick_by_crop(grids: Sequence[Grid], rows: Tensor, count: int, pick: Pick) -> Tensor:
    """`count` tokens of an image, picked crop by crop, each crop its share: (count,) int64, ascending.

    Args:
        grids: See `foveate.core.grid.crops_of`.
        rows: A tensor with the tokens in front; its length and device are read.
        count: How many to pick in all, 1 or more.
        pick: What picks. Crops that are alike run through it together, under `torch.func.vmap`.
    """
    crops = crops_of(grids, len(rows))
    few = shared_out(count, [len(crop) for crop in crops])
    alike: dict[tuple[int, int], list[Tensor]] = {}
    for crop, number in zip(crops, few, strict=True):
        if number:
            alike.setdefault((len(crop), number), []).append(crop)
    picked = []
    for (_, number), group in alike.items():
        tokens = send(torch.stack(group), rows.device)  # (crops, tokens of each)
        if len(group) == 1:
            places = pick(tokens[0], number)[None]
        else:
            places = torch.func.vmap(partial(pick, count=number))(tokens)
        picked.append(tokens.gather(1, places).flatten())
    return torch.cat(picked).sort().values
