"""Patches that leave before a vision tower which needs all of them: none of its blocks runs on their rows, which come
back behind the last one; then the tokens leave that are made of them alone."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.tensors import send
from foveate.core.thin import nearest
from foveate.core.views import PixelView, TowerView
from foveate.errors import UnsupportedError
from foveate.families.thinning import running_thin
from foveate.families.tower import Encoded, Inputs, Reducer, Run
from foveate.families.vision import blocks


def encode_leaving(family: Any, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
    """See `Family.encode_subset`. A unit is a token's patches, or one patch where tokens are pooled."""
    tower, config = family.tower_parts(modality, run, inputs), family.model.config
    side, size = family.block(config), config.vision_config.patch_size
    pixels = side * (size if isinstance(size, int) else size[0])
    views = [_pixel_view(family, pictures, pixels) for pictures in family.pictures(modality, inputs, reducer)]
    cuts = reducer.leave(views)
    if all(cut is None for cut in cuts):
        return run(), cuts
    stays = units_left(views, cuts)
    del views  # pixels in float32, which need not live beside the tower
    tokens = family.tokens_left(modality, stays, inputs)
    leaving = _Leaving(side, list(itertools.chain(*stays)), tokens, reducer.lengths)
    with running_thin(tower, leaving) as reducer.ran:
        encoded: Encoded = family.encode_projected(run, modality, inputs, leaving)
    return encoded


def units_left(views: Sequence[PixelView], cuts: Sequence[Cut | None]) -> list[Tensor]:
    """Which units of each image stay, (pictures, rows, columns) bool on the host, which asks the device once."""
    masks = []
    for view, cut in zip(views, cuts, strict=True):
        stays = torch.ones(len(view), dtype=torch.bool, device=view.device)
        masks.append(stays if cut is None else torch.zeros_like(stays).index_fill(0, cut.source, True))
    images = torch.split(torch.cat(masks).cpu(), [len(mask) for mask in masks])
    return [stays.view(view.units.shape[:3]) for stays, view in zip(images, views, strict=True)]


def _pixel_view(family: Any, pictures: Tensor, side: int) -> PixelView:
    """Pictures, (pictures, channels, height, width), by units of so many pixels; those that fill none are left out."""
    rows, columns = (length // side for length in pictures.shape[2:])
    whole = pictures[..., : rows * side, : columns * side].float().permute(0, 2, 3, 1)
    units = blocks(whole, side).view(len(pictures), rows, columns, -1)
    return PixelView(units, *(units.new_tensor(one).repeat(side**2) for one in (family.pixel_mean, family.pixel_std)))


@dataclass(slots=True, eq=False)
class _Leaving:
    """Says which rows of the tower run, as a `Thinner`, and then which tokens are left, as a `Reducer`.

    Attributes:
        side: Patches of a unit's side.
        pictures: Which units of each picture stay that the tower has not yet got, (rows, columns) bool on the host.
        tokens: Which tokens of all images stay, newlines and the like apart, (tokens,) bool on the host.
        lengths: See `Reducer`.
    """

    side: int
    pictures: list[Tensor]
    tokens: Tensor
    lengths: Callable[..., Sequence[int]]
    early = False
    reads = ()

    def first(self, blocks: int) -> int:
        """Before which block rows leave."""
        return 0

    def thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut | None]:
        """Which rows of each picture run, one at least, and the nearest of these for each other row."""
        cuts: list[Cut | None] = []
        for rows, grid in zip(segments, grids, strict=True):
            stays = self.pictures.pop(0).repeat_interleave(self.side, 0).repeat_interleave(self.side, 1)
            # What fills no unit runs, and what is padding is not there.
            tall, wide = (cells - there for cells, there in zip(grid or stays.shape, stays.shape, strict=True))
            stays = pad(stays, (0, wide, 0, tall), value=True).flatten()
            if len(stays) != len(rows):
                raise UnsupportedError("Patches cannot leave before the tower where a padded picture is no rectangle.")
            stays[0] |= ~stays.any()
            kept = send(stays.nonzero()[:, 0], rows.device)
            cuts.append(None if len(kept) == len(rows) else Cut.join(kept, nearest(rows, kept)))
        return cuts

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """The tokens that stay."""
        images = list(views)
        cuts: list[Cut | None] = []
        for view, stays in zip(images, torch.split(self.tokens, [len(view) for view in images]), strict=True):
            kept = send(stays.nonzero()[:, 0], view.features.device)
            cuts.append(None if len(kept) == len(view) else Cut.take(kept, len(view)))
        return cuts
