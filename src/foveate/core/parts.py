"""The crops of an image that some methods treat one by one: a base view, tiles, frames; and what each may keep."""

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.host import send

__all__ = ["Pick", "crops_of", "pick_by_crop", "shares"]


class Pick(Protocol):
    """Picks `count` of a crop's tokens, given their ordinals in the image; answers with ordinals in the crop."""

    def __call__(self, tokens: Tensor, count: int) -> Tensor: ...


def crops_of(grids: Sequence[Grid], tokens: int) -> list[Tensor]:
    """Which of an image's tokens belong to each crop that the tower has seen: ordinals, ascending.

    Every grid is a crop: a view, or a frame. One that is larger than the first, as LLaVA-NeXT's map of tiles is larger
    than its base view, is divided into tiles of the first's size. Unpadding has cut off as much on either side, so a
    map of 4 columns and tiles of 3 has columns 0 0 1 1. Where the grids do not hold all tokens, all are one crop.

    Args:
        grids: Rows and columns of each grid, one behind the other.
        tokens: How many tokens there are.
    """
    if not grids or sum(rows * columns for rows, columns in grids) != tokens:
        return [torch.arange(tokens)]
    tall, wide = grids[0]
    crops = []
    start = 0
    for rows, columns in grids:
        down, across = _tiles(rows, tall), _tiles(columns, wide)
        tile = (down[:, None] * (int(across[-1]) + 1) + across).flatten()
        for number in range(int(tile[-1]) + 1):
            crops.append((tile == number).nonzero()[:, 0] + start)
        start += rows * columns
    return crops


def _tiles(side: int, tile: int) -> Tensor:
    """The tile of each row (or column) of a map that has been trimmed evenly."""
    count = -(-side // tile)  # rounded up
    trimmed = count * tile - side
    return (torch.arange(side) + trimmed // 2) // tile


def shares(count: int, sizes: Sequence[int]) -> list[int]:
    """`count` divided in proportion to some sizes: rounded down, and what is left to the largest remainders.

    Of equal remainders the first ones get more, and equal sizes get as much as each other: 64 of 5 crops are 13, 13,
    13, 13 and 12. No share is larger than its size.
    """
    total = max(sum(sizes), 1)
    floors = [count * size // total for size in sizes]
    order = sorted(range(len(sizes)), key=lambda crop: -(count * sizes[crop] % total))  # stable
    for crop in order[: count - sum(floors)]:
        floors[crop] += 1
    return floors


def pick_by_crop(grids: Sequence[Grid], rows: Tensor, count: int, pick: Pick) -> Tensor:
    """`count` tokens of an image, picked crop by crop, each crop its share: (count,) int64, ascending.

    Args:
        grids: See `crops_of`.
        rows: A tensor with the tokens in front; its length and device are read.
        count: How many to pick in all, 1 or more.
        pick: What picks. Crops that are alike run through it together, under `torch.func.vmap`.
    """
    crops = crops_of(grids, len(rows))
    few = shares(count, [len(crop) for crop in crops])
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
